/* say.h: what walrusd tells the operator and the service manager. */
#ifndef WALRUS_PROGRAM_SAY_H
#define WALRUS_PROGRAM_SAY_H

#include "../log/log.h"

/* One line on stderr: time, priority, store. Fits the `say` of log and server; `context` is the store's
 * folder (a string). */
void say_line(void *context, enum say priority, const char *line);
void sayf(const char *store, enum say priority, const char *format, ...) printf_like(3, 4);

/* Sends `state` ("READY=1") to $NOTIFY_SOCKET, if there is one. Never blocks, never fails. */
void notify_manager(const char *state);

#endif
