/* interrupt.h: SIGINT and SIGTERM as a request to end in order. The first one is only noted; the next one
 * ends the process at once, as if nothing had been caught. */
#ifndef WALRUS_PROGRAM_INTERRUPT_H
#define WALRUS_PROGRAM_INTERRUPT_H

/* From now on. A signal that was ignored stays ignored. Returns a descriptor that is readable once a signal
 * came (-1 if there is none to be had: then poll is interrupted all the same); it is the process's. */
int interrupt_catch(void);

/* The signal that came, or 0. */
int interrupt_number(void);

/* Its name, for words. */
const char *interrupt_name(void);

#endif
