/* deadline.c: what ends by itself at a given time. */
#include "session.h"

int64_t deadline_next(const struct server *server)
{
    (void)server;
    return INT64_MAX;
}

void deadline_turn(struct server *server, int64_t now)
{
    (void)server;
    (void)now;
}
