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
 * the caches for ever (clone.cc).
 *
 * The return address is kept in a register across the system call, since the child's return overwrites the stack's.
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
	popq	%rdi
	.cfi_adjust_cfa_offset -8
	.cfi_register %rip, %rdi
	movl	$58, %eax
	syscall
	pushq	%rdi
	.cfi_adjust_cfa_offset 8
	testq	%rax, %rax
	je	1f
	movl	%r10d, %fs:(%r9)
	movq	%r8, %fs:(%rsi)
	js	2f
1:	ret
2:	negl	%eax
	movq	errno@gottpoff(%rip), %rcx
	movl	%eax, %fs:(%rcx)
	movq	$-1, %rax
	ret
	.cfi_endproc
	.size	vfork, .-vfork
	.section .note.GNU-stack,"",@progbits
#endif
