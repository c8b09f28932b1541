/*
 * The bare switch between two stacks, without any idea of scheduling.
 *
 * A hand-written switch for x86-64 and aarch64 saves the registers that a called function must keep, and nothing else:
 * some ten times faster than swapcontext(3), which also asks the kernel for the signal mask at every switch. The
 * floating-point control words are not saved: nobody here changes them. -DCOROUTINE_UCONTEXT or another processor
 * selects ucontext.
 *
 * Each switch is announced to AddressSanitizer (whose shadow must know which stack is in use) and ThreadSanitizer.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

#if !defined(COROUTINE_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define COROUTINE_UCONTEXT 1
#endif
#ifdef COROUTINE_UCONTEXT
#include <ucontext.h>
#endif

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define CONTEXT_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define CONTEXT_TSAN 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define CONTEXT_ASAN 1
#endif
#ifdef __SANITIZE_THREAD__
#define CONTEXT_TSAN 1
#endif

typedef struct Context {
#ifdef COROUTINE_UCONTEXT
    ucontext_t uc;
#else
    void *sp; /* where the saved registers lie while another context runs */
#endif
#ifdef CONTEXT_ASAN
    const void *stack; /* lowest address; of a thread's own stack known from the first switch away from it */
    size_t stack_size;
    void *fake_stack; /* AddressSanitizer's own, kept while switched out */
#endif
#ifdef CONTEXT_TSAN
    void *fiber;
#endif
} Context;

/* @context becomes one that runs @fn, which never returns, on the stack [@stack, @stack + @size), @size % 16 == 0. */
void context_init(Context *context, void *stack, size_t size, void (*fn)(void));

/* @context becomes the thread's own stack: where its first switch leaves from. */
void context_init_thread(Context *context);

/* Ends a context of context_init() that is switched out for good. */
void context_destroy(Context *context);

/* Must be the first call of the @fn of context_init(); @from is what its first switch came from. */
void context_entered(Context *self, Context *from);

#if defined(COROUTINE_UCONTEXT) || defined(CONTEXT_ASAN) || defined(CONTEXT_TSAN)
void context_switch(Context *from, Context *to);
#else
void context_swap_sp(void **save_sp, void *to_sp);

/* Saves the present context in @from and goes on in @to; returns when something switches back to @from. */
static inline void context_switch(Context *from, Context *to)
{
    context_swap_sp(&from->sp, to->sp);
}
#endif
