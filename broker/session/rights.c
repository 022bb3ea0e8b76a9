/* rights.c: descriptors that a peer sends and nobody asked for.
 *
 * The protocol sends descriptors to clients and takes none. But a message that carries some is dropped by
 * whoever receives it, or closes the socket over it, and with the last reference the file behind it is
 * closed, in our thread. That close may take as long as its owner likes: a TCP socket with SO_LINGER and
 * unsent data waits for its linger time. So one message could stop the loop for hours.
 *
 *   - Linux 6.16 and later: the listening socket says that it passes no rights, and so do the sockets that
 *     it accepts: the sender gets EPERM, nothing ever arrives.
 *   - Before that: wherever a message may be dropped, a timer ticks at this thread meanwhile. Such a wait
 *     ends when a signal is pending: a millisecond is what a hostile peer gets, once, since its connection
 *     is ended. The handler does nothing and stays for the life of the process. */
#include "session.h"

#include <signal.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83
#endif
#define TICK_NS 1000000

static int tick_signal(void)
{
    return SIGRTMAX - 3;
}

static void on_tick(int number)
{
    (void)number;
}

void rights_start(struct server *server)
{
    int none = 0;
    server->rights_refused =
        setsockopt(server->listener.fd, SOL_SOCKET, SO_PASSRIGHTS, &none, sizeof none) == 0;
    if (!server->rights_refused)
        rights_catch_up(server);
}

void rights_catch_up(struct server *server)
{
    struct sigaction action = {.sa_handler = on_tick}; /* no SA_RESTART: it is there to interrupt */
    sigemptyset(&action.sa_mask);
    if (sigaction(tick_signal(), &action, NULL) != 0)
        server_say(server, SAY_WARNING, "descriptors that clients send may hold the broker up: %s",
                   strerror(errno));
}

/* False: there is no timer to be had, or none is needed. */
static bool ticks_begin(const struct server *server, timer_t *ticker)
{
    if (server->rights_refused)
        return false;
    struct sigevent to_us = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = tick_signal()};
    to_us._sigev_un._tid = gettid();
    if (timer_create(CLOCK_MONOTONIC, &to_us, ticker) != 0)
        return false;
    sigset_t tick;
    sigemptyset(&tick);
    sigaddset(&tick, tick_signal());
    pthread_sigmask(SIG_UNBLOCK, &tick, NULL);
    struct itimerspec ticking = {.it_interval.tv_nsec = TICK_NS, .it_value.tv_nsec = TICK_NS};
    timer_settime(*ticker, 0, &ticking, NULL);
    return true;
}

ssize_t rights_receive(const struct server *server, int fd, struct msghdr *message, int flags)
{
    timer_t ticker;
    bool ticks = ticks_begin(server, &ticker);
    ssize_t n = recvmsg(fd, message, flags);
    if (n < 0)
        n = -errno;
    if (ticks)
        timer_delete(ticker);
    return n;
}

void rights_close(const struct server *server, int fd)
{
    timer_t ticker;
    bool ticks = ticks_begin(server, &ticker);
    close(fd);
    if (ticks)
        timer_delete(ticker);
}
