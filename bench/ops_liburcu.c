/* SPDX-License-Identifier: MIT */
/*
 * liburcu's ways of counting in a thread: a counter of each thread's own, stored so that others may read it while it
 * counts; and what a reader's lock and unlock count themselves.
 */
#define URCU_INLINE_SMALL_FUNCTIONS
#include "ops_loops.h"

#include <urcu/tls-compat.h>
#include <urcu/urcu-bp.h>

static DEFINE_URCU_TLS(struct ops_shard, own);

LOOP(liburcu_counter, CMM_STORE_SHARED(URCU_TLS(own).count[AT], URCU_TLS(own).count[AT] + 1); BARRIER())
LOOP(liburcu_read_lock, urcu_bp_read_lock(); urcu_bp_read_unlock())

const struct ops_loop ops_loops_of_liburcu[] = {
    ROW(liburcu_counter),
    ROW(liburcu_read_lock),
    {NULL, NULL, NULL, NULL},
};
