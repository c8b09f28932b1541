/*
 * Memory that held a secret is wiped before it is given back.
 */
#pragma once
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* Frees @size bytes from g_malloc; takes NULL. */
void wipe_free(void *mem, size_t size);
/* The same for a string. */
void wipe_free_string(char *text);
/* Random bytes that nobody can guess, from the kernel. Nothing replays them: keys are made of them. */
void crypto_random(void *buf, size_t size);
