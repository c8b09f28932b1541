/*
 * The anti-forensic splitter of LUKS: a key is spread over many stripes, all of which it takes to get it back, so that
 * overwriting any of them destroys it. Plain computation: any thread.
 */
#pragma once
#include "qapi/types.h"
#include <stddef.h>
#include <stdint.h>

/* @key of @size bytes into @size * @stripes bytes at @out, most of them random. */
void af_split(QCryptoHashAlgorithm alg, const uint8_t *key, size_t size, uint32_t stripes, uint8_t *out);
/* And back. */
void af_merge(QCryptoHashAlgorithm alg, const uint8_t *in, size_t size, uint32_t stripes, uint8_t *key);
