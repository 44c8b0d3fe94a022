# The self-test guest: one boot sector that does what firmware never does and every system does first. It enters 64-bit
# mode with paging, takes timer interrupts, runs CPUID and an SSE move through a second large page, and ends QEMU by
# isa-debug-exit with 0x2a (exit status 0x2a << 1 | 1 = 85). Any fault on the way is a triple fault, which -no-reboot
# turns into another exit status.
#
#   as --64 selftest.s -o s.o && ld -m elf_x86_64 -Ttext=0 --oformat=binary -e 0 s.o -o selftest.bin
    .code16
    .org 0
start:
    cli
    cld
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    # page tables and IDT at 0x1000..0x5000, zeroed
    mov $0x1000, %di
    mov $0x1000, %cx
    xor %eax, %eax
    rep stosl
    movw $0x2003, 0x1000        # PML4[0] -> PDPT
    movw $0x3003, 0x2000        # PDPT[0] -> PD
    movl $0x000083, 0x3000      # PD[0]: 2 MiB page at 0
    movl $0x200083, 0x3008      # PD[1]: 2 MiB page at 2 MiB
    # IDT gate 0x20 at 0x4200 -> tick
    movw $tick + 0x7c00, 0x4200
    movl $0x8e000008, 0x4202    # selector 8, ist 0, interrupt gate
    # remap the PICs to 0x20/0x28, only IRQ 0 unmasked
    mov $0x11, %al
    out %al, $0x20
    out %al, $0xa0
    mov $0x20, %al
    out %al, $0x21
    mov $0x28, %al
    out %al, $0xa1
    mov $4, %al
    out %al, $0x21
    mov $2, %al
    out %al, $0xa1
    mov $1, %al
    out %al, $0x21
    out %al, $0xa1
    mov $0xfe, %al
    out %al, $0x21
    mov $0xff, %al
    out %al, $0xa1
    # PIT channel 0, about 1000 Hz
    mov $0x34, %al
    out %al, $0x43
    mov $0xa9, %al
    out %al, $0x40
    mov $0x04, %al
    out %al, $0x40
    lgdtl gdtr + 0x7c00
    lidtl idtr + 0x7c00
    mov $0x620, %eax            # PAE, OSFXSR, OSXMMEXCPT
    mov %eax, %cr4
    mov $0x1000, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000001, %eax
    and $0xfffffffb, %eax
    mov %eax, %cr0
    ljmpl $8, $long + 0x7c00
    .code64
long:
    xor %r8d, %r8d              # ticks seen
    mov $0x10, %eax
    mov %eax, %ss
    mov $0x7c00, %esp
    sti
wait:
    hlt
    xor %eax, %eax
    cpuid
    mov %r8, %r9
    movq %r9, %xmm0
    movdqa %xmm0, 0x300000      # second large page
    cmp %r9, 0x300000
    jne wait
    cmp $5, %r8d
    jb wait
    mov $0x2a, %al
    out %al, $0xf4
stop:
    hlt
    jmp stop
tick:
    push %rax
    inc %r8d
    mov $0x20, %al
    out %al, $0x20
    pop %rax
    iretq
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
gdtr:
    .word 23
    .long gdt + 0x7c00
idtr:
    .word 0x20f
    .long 0x4000
    .org 510
    .word 0xaa55
