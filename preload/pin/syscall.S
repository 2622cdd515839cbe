/* SPDX-License-Identifier: MIT
 *
 * syscall(), of which sched_getaffinity alone is ours: LLVM's and Intel's OpenMP, and libnuma, ask for their mask by it.
 *
 * All else jumps on to the next function of this name, with the stack and all arguments as they came: a child may return on another stack,
 * so there must be no frame of ours on the way. What the kernel is asked by the instruction itself does not come by here.
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
	cmpq	$SYS_sched_getaffinity, %rdi
	je	pin_syscall_sched_getaffinity
	movq	pin_next_syscall(%rip), %rax
	testq	%rax, %rax
	je	1f
	jmp	*%rax
1:	pushq	%rdi		/* before our constructor has run */
	.cfi_adjust_cfa_offset 8
	pushq	%rsi
	.cfi_adjust_cfa_offset 8
	pushq	%rdx
	.cfi_adjust_cfa_offset 8
	pushq	%rcx
	.cfi_adjust_cfa_offset 8
	pushq	%r8
	.cfi_adjust_cfa_offset 8
	pushq	%r9
	.cfi_adjust_cfa_offset 8
	subq	$8, %rsp
	.cfi_adjust_cfa_offset 8
	call	pin_find_next_syscall
	addq	$8, %rsp
	.cfi_adjust_cfa_offset -8
	popq	%r9
	.cfi_adjust_cfa_offset -8
	popq	%r8
	.cfi_adjust_cfa_offset -8
	popq	%rcx
	.cfi_adjust_cfa_offset -8
	popq	%rdx
	.cfi_adjust_cfa_offset -8
	popq	%rsi
	.cfi_adjust_cfa_offset -8
	popq	%rdi
	.cfi_adjust_cfa_offset -8
	jmp	*pin_next_syscall(%rip)
	.cfi_endproc
	.size	syscall, .-syscall
	.section .note.GNU-stack,"",@progbits
#endif
