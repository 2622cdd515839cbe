/* SPDX-License-Identifier: MIT
 *
 * What ends a file of assembly: that it needs no stack that can be executed; and where the compiler is told to protect branches
 * (-mbranch-protection on arm64), that its functions begin as that wants it, since the linker asks every object.
 */
	.section .note.GNU-stack,"",%progbits
#if defined(__ARM_FEATURE_BTI_DEFAULT) || defined(__ARM_FEATURE_PAC_DEFAULT)
	.section .note.gnu.property,"a",%note
	.p2align 3
	.word	4, 16, 5		/* lengths of name and content; NT_GNU_PROPERTY_TYPE_0 */
	.asciz	"GNU"
	.word	0xc0000000, 4		/* GNU_PROPERTY_AARCH64_FEATURE_1_AND, its length */
#if defined(__ARM_FEATURE_BTI_DEFAULT) && defined(__ARM_FEATURE_PAC_DEFAULT)
	.word	3, 0
#elif defined(__ARM_FEATURE_BTI_DEFAULT)
	.word	1, 0
#else
	.word	2, 0
#endif
#endif
