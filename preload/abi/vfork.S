/* SPDX-License-Identifier: MIT
 *
 * vfork(), with a word in the thread's memory that says so to the child.
 *
 * The child of a vfork runs in the memory of its parent, thread-local words included, but the kernel has registered no rseq
 * for it: what the thread's rseq area says of the CPU is its parent's news, and its sequences would never be restarted. So a
 * child that allocates (it should not, but does) must not touch the CPUs' caches: percpu_thread_.offset and thread_caches are
 * cleared for it, which sends it to the slow path, and in_vfork_word tells that one why. The parent, which goes on when the
 * child has left the memory, takes percpu_thread_.offset back, and is attached to the caches anew by its next call; it is in
 * no other call in between. in_vfork_word becomes what it was: who calls vfork() may be such a child itself, or stay away from
 * the caches for ever (clone.cc). So does own_mask_word, which the child may have set (pin/placement.h).
 *
 * On x86-64 the return address is kept in a register across the system call, since the child's return overwrites the stack's. On arm64
 * it is in one, and the kernel gives each of the two the registers as they were.
 */
#if defined(__x86_64__)
	.text
	.globl	vfork
	.type	vfork, @function
	.p2align 4
vfork:
	.cfi_startproc
	endbr64
	movq	percpu_thread_@gottpoff(%rip), %rsi
	movq	%fs:(%rsi), %r8
	movq	in_vfork_word@gottpoff(%rip), %r9
	movl	%fs:(%r9), %r10d
	movl	$1, %fs:(%r9)		/* first: a signal handler that allocates here attaches nothing */
	movq	$0, %fs:(%rsi)
	movq	thread_caches@gottpoff(%rip), %rdx
	movq	$0, %fs:(%rdx)		/* malloc_limit */
	movq	$0, %fs:8(%rdx)		/* free_limit */
	movq	$0, %fs:16(%rdx)	/* unchecked_limit */
	movq	own_mask_word@gottpoff(%rip), %rcx
	movl	%fs:(%rcx), %edx
	popq	%rdi
	.cfi_adjust_cfa_offset -8
	.cfi_register %rip, %rdi
	movl	$58, %eax
	syscall
	testq	%rax, %rax
	je	3f
	pushq	%rdi
	.cfi_adjust_cfa_offset 8
	movq	own_mask_word@gottpoff(%rip), %rcx	/* the system call has overwritten it */
	movl	%edx, %fs:(%rcx)
	movl	%r10d, %fs:(%r9)
	movq	%r8, %fs:(%rsi)
	js	2f
	ret
2:	negl	%eax
	movq	errno@gottpoff(%rip), %rcx
	movl	%eax, %fs:(%rcx)
	movq	$-1, %rax
	ret
	.cfi_adjust_cfa_offset -8
3:	jmp	*%rdi			/* the child: a ret would take the entry of a shared shadow stack that the parent's needs */
	.cfi_endproc
	.size	vfork, .-vfork
	.globl	__vfork		/* libc's second name */
	.set	__vfork, vfork
#elif defined(__aarch64__)
#include <sys/syscall.h>
	.text
	.globl	vfork
	.type	vfork, %function
	.p2align 4
vfork:
	.cfi_startproc
	hint	#34			/* bti c */
	mrs	x9, tpidr_el0
	adrp	x10, :gottprel:percpu_thread_
	ldr	x10, [x10, :gottprel_lo12:percpu_thread_]
	add	x10, x9, x10
	adrp	x11, :gottprel:in_vfork_word
	ldr	x11, [x11, :gottprel_lo12:in_vfork_word]
	add	x11, x9, x11
	adrp	x12, :gottprel:thread_caches
	ldr	x12, [x12, :gottprel_lo12:thread_caches]
	add	x12, x9, x12
	adrp	x15, :gottprel:own_mask_word
	ldr	x15, [x15, :gottprel_lo12:own_mask_word]
	add	x15, x9, x15
	ldr	x13, [x10]
	ldr	w14, [x11]
	ldr	w16, [x15]
	mov	w0, #1
	str	w0, [x11]		/* first: a signal handler that allocates here attaches nothing */
	str	xzr, [x10]
	stp	xzr, xzr, [x12]		/* malloc_limit, free_limit */
	str	xzr, [x12, #16]		/* unchecked_limit */
	mov	x0, #0x4111		/* CLONE_VM | CLONE_VFORK | SIGCHLD: there is no other system call for it */
	mov	x1, #0			/* on the parent's stack */
	mov	x2, #0
	mov	x3, #0
	mov	x4, #0
	mov	x8, #SYS_clone
	svc	#0
	cbz	x0, 1f
	str	w16, [x15]
	str	w14, [x11]
	str	x13, [x10]
	cmn	x0, #4095
	b.hs	2f
1:	ret
2:	neg	w0, w0
	adrp	x1, :gottprel:errno
	ldr	x1, [x1, :gottprel_lo12:errno]
	str	w0, [x9, x1]
	mov	x0, #-1
	ret
	.cfi_endproc
	.size	vfork, .-vfork
	.globl	__vfork		/* libc's second name */
	.set	__vfork, vfork
#endif
#include "preload/arch/asm_end.h"
