# The UEFI test guest: a program that firmware finds as \EFI\BOOT\BOOTX64.EFI. It prints on the first serial port what it is
# and which of several, "GUEST up type=UEFI name=default", and counts seconds. It ends only when it is destroyed.
#
# The file is its own linker: a PE32+ image with one section, which the firmware loads anywhere, as all addresses in it are
# relative. The name stands in the first 16 bytes of that section, from byte 512 of the file on, padded with zeros: whoever
# wants another one writes it there.
.code64
.set serial, 0x3f8
.set section, 0x1000              # where the section begins in memory, relative to the image

image:
    .ascii "MZ"
    .org 0x3c
    .long headers - image
headers:
    .ascii "PE\0\0"
    .word 0x8664                  # x86-64
    .word 1                       # sections
    .long 0, 0, 0
    .word sections - optional
    .word 0x22                    # executable, large addresses
optional:
    .word 0x20b                   # PE32+
    .word 0
    .long end - text, 0, 0        # sizes: code, data, zeros
    .long section + entry - text
    .long section
    .quad 0                       # preferred address
    .long 0x1000, 0x200           # alignments: memory, file
    .long 0, 0, 0, 0              # versions
    .long 0x2000, 0x200           # sizes: image in memory, headers
    .long 0
    .word 10, 0                   # a UEFI application
    .quad 0, 0, 0, 0
    .long 0, 6                    # six empty directories
    .fill 12, 4, 0
sections:
    .ascii ".text\0\0\0"
    .long end - text, section, end - text, text - image
    .long 0, 0, 0
    .long 0xe0000020              # code; to be read, written and executed

    .org 0x200
text:
name:
    .ascii "default"
    .org 0x210
entry:
    pushq %rbx
    pushq %rsi
    pushq %rdi
    subq $32, %rsp                # space for the arguments of what is called
    movq 0x60(%rdx), %rbx         # the system table's boot services
    xorl %ecx, %ecx
    xorl %edx, %edx
    xorl %r8d, %r8d
    xorl %r9d, %r9d
    call *0x100(%rbx)             # SetWatchdogTimer: no reset after five minutes
    leaq up(%rip), %rsi
    call print
    leaq name(%rip), %rsi
    call print
    leaq newline(%rip), %rsi
    call print
    xorl %edi, %edi
tick:
    leaq word(%rip), %rsi
    call print
    movl %edi, %eax
    call number
    leaq newline(%rip), %rsi
    call print
    incl %edi
    movl $1000000, %ecx
    call *0xf8(%rbx)              # Stall, microseconds
    jmp tick

# Prints %eax in decimal.
number:
    xorl %edx, %edx
    movl $10, %ecx
    divl %ecx
    pushq %rdx
    testl %eax, %eax
    jz digit
    call number
digit:
    popq %rax
    addb $'0', %al
    jmp character

# Prints the text at %rsi up to its zero byte.
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

up:      .asciz "\r\nGUEST up type=UEFI name="
newline: .asciz "\r\n"
word:    .asciz "TICK "
    .org 0x400
end:
