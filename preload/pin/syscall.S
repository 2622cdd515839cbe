/* SPDX-License-Identifier: MIT
 *
 * syscall(), of which sched_getaffinity and sched_setaffinity are ours: LLVM's and Intel's OpenMP, and libnuma, ask for their mask, and
 * set it, by this. So is exit: of a main thread that ends by it nobody else hears.
 *
 * All else jumps on to the next function of this name, with the stack and all arguments as they came: a child may return on another stack,
 * so there must be no frame of ours on the way. What the kernel is asked by the instruction itself does not come by here.
 *
 * Until our constructor has found that function the call is made here (pin_kernel_syscall): resolvers of other libraries' IFUNCs may
 * come by before this object is relocated, when no function of another one can be called.
 */
#include <sys/syscall.h>
#if defined(__x86_64__)
	.text
	.globl	syscall
	.type	syscall, @function
	.p2align 4
syscall:
	.cfi_startproc
	endbr64
	cmpq	$SYS_sched_setaffinity, %rdi
	je	pin_syscall_sched_setaffinity
	movq	pin_next_syscall(%rip), %rax
	testq	%rax, %rax
	je	pin_kernel_syscall
	cmpq	$SYS_sched_getaffinity, %rdi
	je	pin_syscall_sched_getaffinity
	cmpq	$SYS_exit, %rdi
	je	pin_syscall_exit
	jmp	*%rax
	.cfi_endproc
	.size	syscall, .-syscall

	.globl	pin_kernel_syscall
	.hidden	pin_kernel_syscall
	.type	pin_kernel_syscall, @function
	.p2align 4
pin_kernel_syscall:
	.cfi_startproc
	endbr64
	movq	%rdi, %rax	/* as libc does it */
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
	.size	pin_kernel_syscall, .-pin_kernel_syscall
#elif defined(__aarch64__)
	.text
	.globl	syscall
	.type	syscall, %function
	.p2align 4
syscall:
	.cfi_startproc
	hint	#34		/* bti c */
	cmp	x0, #SYS_sched_setaffinity
	b.ne	1f
	b	pin_syscall_sched_setaffinity
1:	adrp	x16, pin_next_syscall
	ldr	x16, [x16, :lo12:pin_next_syscall]
	cbz	x16, pin_kernel_syscall
	cmp	x0, #SYS_sched_getaffinity
	b.ne	2f
	b	pin_syscall_sched_getaffinity
2:	cmp	x0, #SYS_exit
	b.ne	3f
	b	pin_syscall_exit
3:	br	x16		/* by this register to a "bti c", as by a call */
	.cfi_endproc
	.size	syscall, .-syscall

	.globl	pin_kernel_syscall
	.hidden	pin_kernel_syscall
	.type	pin_kernel_syscall, %function
	.p2align 4
pin_kernel_syscall:
	.cfi_startproc
	hint	#34
	mov	w8, w0		/* as libc does it */
	mov	x0, x1
	mov	x1, x2
	mov	x2, x3
	mov	x3, x4
	mov	x4, x5
	mov	x5, x6
	mov	x6, x7
	svc	#0
	cmn	x0, #4095
	b.hs	2f
	ret
2:	neg	w0, w0
	adrp	x1, :gottprel:errno
	ldr	x1, [x1, :gottprel_lo12:errno]
	cbz	x1, 3f		/* nobody has said yet where errno is */
	mrs	x2, tpidr_el0
	str	w0, [x2, x1]
3:	mov	x0, #-1
	ret
	.cfi_endproc
	.size	pin_kernel_syscall, .-pin_kernel_syscall
#endif
#include "preload/arch/asm_end.h"
