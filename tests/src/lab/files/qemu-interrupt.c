/*
 * A repair of QEMU 7.2, loaded into it by LD_PRELOAD.
 *
 * When a guest of a guest writes its task priority (CR8) while a virtual interrupt waits for it, QEMU raises that interrupt
 * without its big lock, finds out and aborts: "tcg_handle_interrupt: assertion failed: (qemu_mutex_iothread_locked())". OVMF
 * writes CR8 at the end of every interrupt. Here the lock is taken when it is not held. No other function of QEMU
 * is replaced; this one can be, because it lies in a module, which takes the first function of that name that it finds.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static const char module[] = "/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so";

bool qemu_mutex_iothread_locked(void);
void qemu_mutex_lock_iothread_impl(const char *file, int line);
void qemu_mutex_unlock_iothread(void);

typedef void handler(void *cpu, int mask);

static handler *original(void)
{
    void *handle = dlopen(module, RTLD_LAZY | RTLD_NOLOAD);
    void *found = handle ? dlsym(handle, "tcg_handle_interrupt") : NULL;
    if (!found) {
        fprintf(stderr, "%s is not loaded, or has no tcg_handle_interrupt\n", module);
        abort();
    }
    return found;
}

void tcg_handle_interrupt(void *cpu, int mask)
{
    /* Threads that come here at once find the same one. */
    static handler *handle;
    if (!handle) {
        handle = original();
    }
    bool locked = qemu_mutex_iothread_locked();
    if (!locked) {
        qemu_mutex_lock_iothread_impl("qemu-interrupt.c", __LINE__);
    }
    handle(cpu, mask);
    if (!locked) {
        qemu_mutex_unlock_iothread();
    }
}
