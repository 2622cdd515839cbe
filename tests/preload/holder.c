/* SPDX-License-Identifier: MIT
 *
 * Holds what statistics.py looks for, and ends.
 *
 *   holder held      1,000 blocks of 640 bytes and one of 5 MB; some others were freed, and lie in caches
 *   holder emptied   nothing; what lay in caches was taken back
 */
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BLOCKS = 1000, FREED = 200 };

static void *volatile held[BLOCKS];
static void *volatile freed[FREED];

static void fill_caches(void) {
  for (int i = 0; i < FREED; i++) freed[i] = malloc(96);
  for (int i = 0; i < FREED; i++) free(freed[i]);
}

static void *work(void *unused) {
  fill_caches();
  return unused;
}

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  if (strcmp(argv[1], "held") == 0) {
    for (int i = 0; i < BLOCKS; i++) held[i] = malloc(640);
    static void *volatile large;
    large = malloc(5000000);
    fill_caches();
    return large == NULL;
  }
  pthread_t thread;
  if (pthread_create(&thread, NULL, work, NULL) != 0 || pthread_join(thread, NULL) != 0) return 1;
  fill_caches();
  for (int i = 0; i < 60000 && mallinfo2().fsmblks != 0; i++) nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
  return 0;
}
