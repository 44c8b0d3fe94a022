# A guest of one sector for the tests of the machine. DOES, given when it is assembled, says what it does after it has
# said "up" on its serial port.
    .set BUTTON, 1      # waits for the power button, then switches itself off
    .set DEAF, 2        # never ends
    .set OFF, 3         # switches itself off at once
    .set RESET, 4       # restarts, again and again
    .set PANIC, 5       # tells of a panic (pvpanic)
    .set WRITE, 6       # writes COUNT x 32 KiB onto its disk, from 1 MiB on, then switches itself off

    .code16
    cli
    cld
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x7c00, %sp
    mov $0x3f8, %dx
    mov $'u', %al
    out %al, %dx
    mov $'p', %al
    out %al, %dx
    mov $'\n', %al
    out %al, %dx
    sti
.if DOES == BUTTON
    mov $0x602, %dx             # PM1 enable: the power button
    mov $0x100, %ax
    out %ax, %dx
pressed:
    hlt
    mov $0x600, %dx             # PM1 status
    in %dx, %ax
    test $1, %ah
    jz pressed
.endif
.if DOES == DEAF
    jmp stop
.endif
.if DOES == RESET
    mov $0xcf9, %dx
    mov $6, %al
    out %al, %dx
    jmp stop
.endif
.if DOES == PANIC
    mov $0x505, %dx
    mov $1, %al
    out %al, %dx
    jmp stop
.endif
.if DOES == WRITE
    mov $COUNT, %cx
again:
    push %cx
    mov $packet + 0x7c00, %si
    mov $0x4300, %ax            # INT 13h, extended write
    mov $0x80, %dl
    int $0x13
    pop %cx
    jc stop                     # the guest saw an error
    addl $64, packet + 0x7c00 + 8
    loop again
.endif
    mov $0x604, %dx             # PM1 control: sleep type 0 is off
    mov $0x2000, %ax
    out %ax, %dx
stop:
    hlt
    jmp stop
packet:                         # 64 sectors from the firmware's own memory, which is not zero
    .byte 16, 0
    .word 64
    .word 0x0000, 0xf800
    .quad 2048
    .org 510
    .word 0xaa55
