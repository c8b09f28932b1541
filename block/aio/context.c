#include "block/aio/context.h"
#include <glib.h>

#ifdef CONTEXT_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef CONTEXT_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#ifndef COROUTINE_UCONTEXT
#if defined(CONTEXT_ASAN) || defined(CONTEXT_TSAN)
void context_swap_sp(void **save_sp, void *to_sp);
#endif

#ifdef __x86_64__
/*
 * The way back is "pop, jump" and not "ret": the processor's return predictor would be wrong at every single switch,
 * while an indirect jump is predicted by history.
 */
__asm__(".text\n"
        ".p2align 4\n"
        ".globl context_swap_sp\n"
        ".type context_swap_sp, @function\n"
        "context_swap_sp:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    popq %rcx\n"
        "    jmp *%rcx\n"
        ".size context_swap_sp, . - context_swap_sp\n");

/* Six registers, the address of @fn, and a zero return address that ends every backtrace and keeps the ABI's alignment.
 */
static void *first_frame(void *stack, size_t size, void (*fn)(void))
{
    void **sp = (void **)((char *)stack + size) - 8;
    for (int i = 0; i < 8; i++)
        sp[i] = NULL;
    sp[6] = (void *)fn;
    return sp;
}
#else /* __aarch64__ */
__asm__(".text\n"
        ".p2align 4\n"
        ".globl context_swap_sp\n"
        ".type context_swap_sp, %function\n"
        "context_swap_sp:\n"
        "    sub sp, sp, #160\n"
        "    stp x19, x20, [sp, #0]\n"
        "    stp x21, x22, [sp, #16]\n"
        "    stp x23, x24, [sp, #32]\n"
        "    stp x25, x26, [sp, #48]\n"
        "    stp x27, x28, [sp, #64]\n"
        "    stp x29, x30, [sp, #80]\n"
        "    stp d8, d9, [sp, #96]\n"
        "    stp d10, d11, [sp, #112]\n"
        "    stp d12, d13, [sp, #128]\n"
        "    stp d14, d15, [sp, #144]\n"
        "    mov x9, sp\n"
        "    str x9, [x0]\n"
        "    mov sp, x1\n"
        "    ldp x19, x20, [sp, #0]\n"
        "    ldp x21, x22, [sp, #16]\n"
        "    ldp x23, x24, [sp, #32]\n"
        "    ldp x25, x26, [sp, #48]\n"
        "    ldp x27, x28, [sp, #64]\n"
        "    ldp x29, x30, [sp, #80]\n"
        "    ldp d8, d9, [sp, #96]\n"
        "    ldp d10, d11, [sp, #112]\n"
        "    ldp d12, d13, [sp, #128]\n"
        "    ldp d14, d15, [sp, #144]\n"
        "    add sp, sp, #160\n"
        "    br x30\n"
        ".size context_swap_sp, . - context_swap_sp\n");

/* The saved registers, all zero but the link register (x30), which is where the first switch jumps. */
static void *first_frame(void *stack, size_t size, void (*fn)(void))
{
    void **sp = (void **)((char *)stack + size) - 20;
    for (int i = 0; i < 20; i++)
        sp[i] = NULL;
    sp[11] = (void *)fn;
    return sp;
}
#endif
#endif /* COROUTINE_UCONTEXT */

void context_init(Context *context, void *stack, size_t size, void (*fn)(void))
{
    *context = (Context){0};
#ifdef COROUTINE_UCONTEXT
    if (getcontext(&context->uc) < 0)
        g_error("getcontext: %s", g_strerror(errno));
    context->uc.uc_stack.ss_sp = stack;
    context->uc.uc_stack.ss_size = size;
    context->uc.uc_link = NULL;
    makecontext(&context->uc, fn, 0);
#else
    context->sp = first_frame(stack, size, fn);
#endif
#ifdef CONTEXT_ASAN
    context->stack = stack;
    context->stack_size = size;
#endif
#ifdef CONTEXT_TSAN
    context->fiber = __tsan_create_fiber(0);
#endif
}

void context_init_thread(Context *context)
{
    *context = (Context){0};
#ifdef CONTEXT_TSAN
    context->fiber = __tsan_get_current_fiber();
#endif
}

void context_destroy(Context *context)
{
#ifdef CONTEXT_TSAN
    __tsan_destroy_fiber(context->fiber);
#endif
}

/* What AddressSanitizer wants to hear right after a switch, on the new stack. */
static inline void after_switch(Context *self, Context *from)
{
#ifdef CONTEXT_ASAN
    const void *stack;
    size_t size;
    __sanitizer_finish_switch_fiber(self->fake_stack, &stack, &size);
    if (from) {
        from->stack = stack;
        from->stack_size = size;
    }
#endif
}

void context_entered(Context *self, Context *from)
{
    after_switch(self, from);
}

#if defined(COROUTINE_UCONTEXT) || defined(CONTEXT_ASAN) || defined(CONTEXT_TSAN)
void context_switch(Context *from, Context *to)
{
#ifdef CONTEXT_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_size);
#endif
#ifdef CONTEXT_TSAN
    __tsan_switch_to_fiber(to->fiber, 0);
#endif
#ifdef COROUTINE_UCONTEXT
    if (swapcontext(&from->uc, &to->uc) < 0)
        g_error("swapcontext: %s", g_strerror(errno));
#else
    context_swap_sp(&from->sp, to->sp);
#endif
    after_switch(from, NULL);
}
#endif
