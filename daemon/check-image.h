/*
 * `storage-daemon --check IMAGE`: checks one image, repairs it if asked, and ends.
 */
#pragma once
#include "daemon/options.h"

/* Does it and says what came of it. The exit code: 0 clean, 1 no verdict, 2 corruption, 3 leaks, 63 not supported. */
int check_image_main(const Options *options);
