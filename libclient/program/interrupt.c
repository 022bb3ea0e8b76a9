#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <sys/eventfd.h>

#include "interrupt.h"

/* A signal handler can reach nothing else. */
static volatile sig_atomic_t noted;
static volatile sig_atomic_t event_fd = -1;

static void note(int number)
{
    int error = errno;
    const struct sigaction once = {.sa_handler = SIG_DFL};
    sigaction(SIGINT, &once, NULL);
    sigaction(SIGTERM, &once, NULL);
    noted = number;
    if (event_fd >= 0)
        eventfd_write(event_fd, 1);
    errno = error;
}

int interrupt_catch(void)
{
    static const int numbers[] = {SIGINT, SIGTERM};
    event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        struct sigaction before;
        const struct sigaction action = {.sa_handler = note};
        if (sigaction(numbers[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
            sigaction(numbers[i], &action, NULL);
    }
    return event_fd;
}

int interrupt_number(void)
{
    return noted;
}

const char *interrupt_name(void)
{
    return noted == SIGTERM ? "SIGTERM" : "SIGINT";
}
