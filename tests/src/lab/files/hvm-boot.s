# The HVM test guest: one boot sector, because an emulated firmware needs minutes to load a kernel through emulated
# ports. It prints what the PVH guest prints, on the first serial port, and counts its starts in the disk's second
# sector: "DISK xvda boots=3". BIOS only; it knows no xenstore and ends only when it is destroyed.
.code16
.set serial, 0x3f8
.set sector, 0x7e00          # the second sector's copy, behind this one
.set clock, 0x46c            # the BIOS's count of timer ticks, 18.2 a second

start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    sti
    cld
    movb %dl, drive          # the firmware says which drive it booted

    movw $serial + 3, %dx    # 115200 baud, 8 data bits, no parity, one stop bit
    movb $0x83, %al
    outb %al, %dx
    movw $serial, %dx
    movb $1, %al
    outb %al, %dx
    incw %dx
    xorb %al, %al
    outb %al, %dx
    movw $serial + 3, %dx
    movb $3, %al
    outb %al, %dx

    movw $up, %si
    call print
    movb $2, %ah             # read
    call transfer
    jc failed
    incw sector
    movb $3, %ah             # write
    call transfer
    jc failed
    movw $boots, %si
    call print
    movw sector, %ax
    call number
    call newline
    jmp ticks
failed:
    movw $failure, %si
    call print

ticks:
    xorw %di, %di
tick:
    movw $word, %si
    call print
    movw %di, %ax
    call number
    call newline
    incw %di
    movw clock, %bx
wait:
    hlt
    movw clock, %ax
    subw %bx, %ax
    cmpw $18, %ax
    jb wait
    jmp tick

# Reads or writes (in %ah) the second sector of the boot drive; the carry flag says that it failed.
transfer:
    movb $1, %al
    movw $sector, %bx
    movw $2, %cx             # cylinder 0, sector 2, counted from 1
    movb drive, %dl
    xorb %dh, %dh
    int $0x13
    ret

# Prints %ax in decimal.
number:
    xorw %dx, %dx
    movw $10, %cx
    divw %cx
    pushw %dx
    testw %ax, %ax
    jz digit
    call number
digit:
    popw %ax
    addb $'0', %al
    jmp character

newline:
    movw $end, %si
# Prints the text at %si up to its zero byte.
print:
    lodsb
    testb %al, %al
    jz done
    call character
    jmp print
done:
    ret

# Sends %al when the port is ready for it.
character:
    movb %al, %ah
    movw $serial + 5, %dx
busy:
    inb %dx, %al
    testb $0x20, %al
    jz busy
    movw $serial, %dx
    movb %ah, %al
    outb %al, %dx
    ret

drive:   .byte 0
up:      .ascii "GUEST up type=HVM"
end:     .asciz "\r\n"
boots:   .asciz "DISK xvda boots="
failure: .asciz "DISK xvda failed\r\n"
word:    .asciz "TICK "
    .org 510
    .word 0xaa55
