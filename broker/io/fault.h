/* fault.h: a struct io around another one that makes ops fail, come short or wait, and counts them. For
 * tests; not linked into walrusd. */
#ifndef WALRUS_FAULT_H
#define WALRUS_FAULT_H

#include "io.h"

/* Wraps `inner`, which belongs to *out from then on and is destroyed with it. Until told otherwise everything
 * passes. */
int io_fault_create(struct io *inner, struct io **out) must_check;

enum fault_action {
    FAULT_FAIL_BEFORE, /* the op does not reach the disk; its result is -error */
    FAULT_FAIL_AFTER,  /* the op is done, and its result is -error all the same */
    FAULT_SHORT,       /* WRITE, READ: only the first `bytes` are done (aligned, on direct files); 0: none */
};

/* The nth op of this kind from now on (1: the next one) meets the fault; with `from_then_on` every later one
 * too. One fault per kind at a time: setting it again replaces it. */
struct fault {
    enum fault_action action;
    int error; /* positive errno */
    uint64_t bytes;
    uint64_t nth;
    bool from_then_on;
    bool only_background, only_foreground; /* which ops of the kind count for it; neither: all */
};
void io_fault_set(struct io *io, enum io_kind kind, const struct fault *fault);
void io_fault_clear(struct io *io, enum io_kind kind);

/* Holds completions of this kind back (the op itself is done) until they are released: all at once, or one by
 * one. */
void io_fault_hold(struct io *io, enum io_kind kind, bool hold);
unsigned io_fault_held(const struct io *io, enum io_kind kind);
/* Lets up to `most` of those held go, oldest first; they complete in the next io_wait. Returns how many. */
unsigned io_fault_release(struct io *io, enum io_kind kind, unsigned most);

/* Ops of this kind submitted, and bytes of those (READ, WRITE), since the start. */
uint64_t io_fault_count(const struct io *io, enum io_kind kind);
uint64_t io_fault_bytes(const struct io *io, enum io_kind kind);

#endif
