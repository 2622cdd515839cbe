/* SPDX-License-Identifier: MIT
 *
 * syscall(), of which sched_getaffinity alone is ours: LLVM's and Intel's OpenMP, and libnuma, ask for their mask by it.
 *
 * All else jumps on to the next function of this name, with the stack and all arguments as they came: a child may return on another stack,
 * so there must be no frame of ours on the way. What the kernel is asked by the instruction itself does not come by here.
 *
 * Until our constructor has found that function the call is made here: resolvers of other libraries' IFUNCs may come by before this
 * object is relocated, when no function of another one can be called.
 */
#if defined(__x86_64__)
#include <sys/syscall.h>
	.text
	.globl	syscall
	.type	syscall, @function
	.p2align 4
syscall:
	.cfi_startproc
	endbr64
	movq	pin_next_syscall(%rip), %rax
	testq	%rax, %rax
	je	1f
	cmpq	$SYS_sched_getaffinity, %rdi
	je	pin_syscall_sched_getaffinity
	jmp	*%rax
1:	movq	%rdi, %rax	/* as libc does it */
	movq	%rsi, %rdi
	movq	%rdx, %rsi
	movq	%rcx, %rdx
	movq	%r8, %r10
	movq	%r9, %r8
	movq	8(%rsp), %r9
	syscall
	cmpq	$-4095, %rax
	jae	2f
	ret
2:	negl	%eax
	movq	errno@gottpoff(%rip), %rdx
	testq	%rdx, %rdx
	je	3f		/* nobody has said yet where errno is */
	movl	%eax, %fs:(%rdx)
3:	movq	$-1, %rax
	ret
	.cfi_endproc
	.size	syscall, .-syscall
	.section .note.GNU-stack,"",@progbits
#endif
