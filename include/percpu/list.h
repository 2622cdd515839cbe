/* SPDX-License-Identifier: MIT */
/*
 * percpu/list.h - lists of each CPU, for nodes that the caller owns
 *
 * One handle of type struct percpu_list * stands for a last-in-first-out list on each CPU; zeroed memory is an empty
 * list. A node is the caller's memory with a struct percpu_list_node in it. Pushing and popping are one restartable
 * sequence each; another CPU's list is not pushed to or popped from, but taken as a whole (drained).
 *
 *   push: if (stop) -> shared list; node->next = head; head = node           (commit: head)
 *   pop:  if (stop || !head) -> shared list; node = head; head = node->next  (commit: head)
 *   drain(cpu):  ++stop;  percpu_fence(cpu);  chain = exchange(head, NULL);  --stop
 *
 * The stop word counts drains that are under way. Sequences that began before the fence are aborted by it and read the
 * word anew; so from the fence until the last drain has lowered the word, none changes the head or follows a node, and
 * several drains agree among themselves by the atomic exchange. No one ever waits for anybody: a drain may be
 * interrupted by a signal handler that drains the same list, and neither sees the other. (Explored to the end, with mutants:
 * tests/model/protocols_test.cc.)
 *
 * The shared list is the one in the extra copy of the group that the thread runs in. It takes what threads without rseq
 * push, and what is pushed to a CPU's list while that is being drained; it gives nodes to threads without rseq, and to
 * every thread that finds its own CPU's list empty or being drained. It is changed by atomic instructions only: a push
 * exchanges the head if it is still the one that was read; who wants nodes takes them all, keeps one, and puts the rest
 * back. A node is therefore followed only by the one thread that took it, which makes it safe to free nodes, and
 * harmless if one comes back at the same address (ABA).
 *
 * Invariants: stop is changed only by atomic instructions, never by a sequence. Where the whole process runs without
 * rseq, each CPU's list is worked on as a shared list is.
 *
 * Locking: none. Context: any thread, any signal handler, the child of a fork(): there, nodes that other threads of the parent
 * had in hand are on no list, and one that another thread was draining works as the shared one does.
 */
#ifndef PERCPU_LIST_H
#define PERCPU_LIST_H

#include <errno.h>

#include <percpu/words.h>

/* Embedded in what is to be on a list. Belongs to the list between push and pop. */
struct percpu_list_node {
  struct percpu_list_node *next;
};

/* One CPU's list; the layout is known to percpu/arch. */
struct percpu_list {
  struct percpu_list_node *head;
  uint64_t stop; /* drains under way */
};

#ifdef __cplusplus
extern "C" {
static_assert(offsetof(struct percpu_list, head) == 0 && offsetof(struct percpu_list, stop) == 8,
              "the layout that percpu/arch knows");
#else
_Static_assert(offsetof(struct percpu_list, head) == 0 && offsetof(struct percpu_list, stop) == 8,
               "the layout that percpu/arch knows");
#endif

#ifndef PERCPU_H /* which declares it, and tells of it */
int percpu_fence(int cpu);
#endif

#ifdef __cplusplus
}
#endif

/* Puts the chain first..last before what is on a shared list. */
PERCPU_INLINE_ void percpu_shared_push_(struct percpu_list *list, struct percpu_list_node *first,
                                        struct percpu_list_node *last) {
  struct percpu_list_node *head = __atomic_load_n(&list->head, __ATOMIC_RELAXED);
  do {
    last->next = head;
  } while (!__atomic_compare_exchange_n(&list->head, &head, first, 1, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
}

/* Takes one node off a shared list. NULL: it was empty, or another thread had its nodes in hand just now. */
PERCPU_INLINE_ struct percpu_list_node *percpu_shared_pop_(struct percpu_list *list) {
  struct percpu_list_node *node, *rest, *none = NULL;
  if (__atomic_load_n(&list->head, __ATOMIC_RELAXED) == NULL) return NULL;
  node = __atomic_exchange_n(&list->head, NULL, __ATOMIC_SEQ_CST);
  if (node == NULL) return NULL;
  rest = node->next;
  /* Back it goes. If others pushed meanwhile, take those nodes too and put them in front, where they were pushed. */
  while (rest != NULL &&
         !__atomic_compare_exchange_n(&list->head, &none, rest, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
    struct percpu_list_node *fresh = __atomic_exchange_n(&list->head, NULL, __ATOMIC_SEQ_CST), *last = fresh;
    none = NULL;
    if (fresh == NULL) continue;
    while (last->next != NULL) last = last->next;
    last->next = rest;
    rest = fresh;
  }
  return node;
}

PERCPU_COLD_ void percpu_push_slow_(struct percpu_list *list, struct percpu_list_node *node,
                                    const struct percpu_view *view) {
#if PERCPU_HAVE_SEQUENCES
  const uintptr_t *table = percpu_attached_table_(view);
  if (table != NULL && percpu_seq_push_(table, list, node) == 0) return;
#endif
  percpu_shared_push_((struct percpu_list *)percpu_shared_(view, list), node, node);
}

PERCPU_COLD_ struct percpu_list_node *percpu_pop_slow_(struct percpu_list *list, const struct percpu_view *view) {
#if PERCPU_HAVE_SEQUENCES
  const uintptr_t *table = percpu_attached_table_(view);
  if (table != NULL) {
    void *node = percpu_seq_pop_(table, list);
    if (node != NULL) return (struct percpu_list_node *)node;
  }
#endif
  return percpu_shared_pop_((struct percpu_list *)percpu_shared_(view, list));
}

PERCPU_INLINE_ void percpu_push_(const struct percpu_view *view, struct percpu_list *list,
                                 struct percpu_list_node *node) {
#if PERCPU_HAVE_SEQUENCES
  const uintptr_t *table = percpu_table_(view);
  if (PERCPU_LIKELY_(table != NULL)) {
    percpu_check_8_(table, list);
#ifdef PERCPU_UNDER_ASAN
    (void)*(const volatile percpu_u8_ *)node;
#endif
    if (PERCPU_LIKELY_(percpu_seq_push_(table, list, node) == 0)) return;
  }
#endif
  percpu_push_slow_(list, node, view);
}

PERCPU_INLINE_ struct percpu_list_node *percpu_pop_(const struct percpu_view *view, struct percpu_list *list) {
#if PERCPU_HAVE_SEQUENCES
  const uintptr_t *table = percpu_table_(view);
  if (PERCPU_LIKELY_(table != NULL)) {
    void *node;
    percpu_check_8_(table, list);
    node = percpu_seq_pop_(table, list);
    if (PERCPU_LIKELY_(node != NULL)) return (struct percpu_list_node *)node;
  }
#endif
  return percpu_pop_slow_(list, view);
}

static __attribute__((__unused__)) int percpu_drain_(const struct percpu_view *view, struct percpu_list *handle,
                                                     uint32_t copy, struct percpu_list_node **chain) {
  struct percpu_list *list;
  int of_cpu, saved_errno;
  *chain = NULL;
  view = percpu_view_or_default_(view);
  if (copy >= view->nr_copies) {
    errno = EINVAL;
    return -1;
  }
  if (view->offset[copy] == 0) return 0;
  list = (struct percpu_list *)((uintptr_t)handle + view->offset[copy]);
  of_cpu = copy < view->nr_cpu_ids;
  if (of_cpu) {
    __atomic_fetch_add(&list->stop, 1, __ATOMIC_SEQ_CST);
    saved_errno = errno;
    if (percpu_fence((int)copy) != 0) {
      if (errno != EINVAL) {
        __atomic_fetch_sub(&list->stop, 1, __ATOMIC_SEQ_CST);
        return -1;
      }
      errno = saved_errno; /* the pool is laid out for a CPU that this machine cannot have: nothing runs there */
    }
  }
  *chain = __atomic_exchange_n(&list->head, NULL, __ATOMIC_SEQ_CST);
  if (of_cpu) __atomic_fetch_sub(&list->stop, 1, __ATOMIC_SEQ_CST);
  return 0;
}

/* Puts `node` on this CPU's list. */
PERCPU_INLINE_ void percpu_list_push(struct percpu_list *list, struct percpu_list_node *node) {
  percpu_push_(NULL, list, node);
}
PERCPU_INLINE_ void percpu_pool_list_push(const struct percpu_pool *pool, struct percpu_list *list,
                                          struct percpu_list_node *node) {
  percpu_push_(percpu_pool_view_(pool), list, node);
}

/*
 * Takes the node pushed last off this CPU's list, or one off the shared list. Returns NULL if neither has any; or if another thread, or
 * the one that a signal handler interrupted, has the shared list's nodes in hand just now: it takes all, keeps one, and puts the rest
 * back. A thread without rseq has the shared list only, and in a process without rseq each CPU's list is such a one: there NULL does not
 * say that the list is empty.
 */
PERCPU_INLINE_ struct percpu_list_node *percpu_list_pop(struct percpu_list *list) {
  return percpu_pop_(NULL, list);
}
PERCPU_INLINE_ struct percpu_list_node *percpu_pool_list_pop(const struct percpu_pool *pool,
                                                             struct percpu_list *list) {
  return percpu_pop_(percpu_pool_view_(pool), list);
}

/*
 * Takes all nodes of one copy, whatever its CPU does: *chain is the first, linked by next, the last pushed first. Copy ids
 * are the CPU numbers and, behind them, the extra copies; the first that there is not is refused with EINVAL. So, to empty a
 * list everywhere:
 *
 *   struct percpu_list_node *node, *next;
 *   uint32_t copy;
 *   for (copy = 0; percpu_list_drain(list, copy, &node) == 0; copy++)
 *     for (; node != NULL; node = next) {
 *       next = node->next;
 *       free(node);
 *     }
 *   if (errno != EINVAL) ...                percpu_fence() failed: what the copies from `copy` on hold is still there
 *
 * (struct percpu_stats.nr_copies does not count holes in the CPU numbers, and may be less than what copy ends at.)
 *
 * Returns: 0, *chain being NULL where the list was empty or the copy does not exist.
 * Errors: -1 with *chain NULL and errno EINVAL (no such copy id) or what percpu_fence() says.
 * Context: may be called while anybody pushes, pops and drains. Makes system calls. A node that a concurrent pop from
 * the shared list has in hand is not in the chain.
 */
static inline __attribute__((__unused__)) int percpu_list_drain(struct percpu_list *list, uint32_t copy,
                                                                struct percpu_list_node **chain) {
  return percpu_drain_(NULL, list, copy, chain);
}
static inline __attribute__((__unused__)) int percpu_pool_list_drain(const struct percpu_pool *pool,
                                                                     struct percpu_list *list, uint32_t copy,
                                                                     struct percpu_list_node **chain) {
  return percpu_drain_(percpu_pool_view_(pool), list, copy, chain);
}

#endif /* PERCPU_LIST_H */
