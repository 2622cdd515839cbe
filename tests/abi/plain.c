/* SPDX-License-Identifier: MIT */
/* A library that has nothing to do with libpercpu. See odd_note.c. */
__attribute__((visibility("default"))) int plain(void);
int plain(void) { return 1; }
