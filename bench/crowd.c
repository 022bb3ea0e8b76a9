/* crowd.c: the loop of a process that has many connections, as a server program would write it.
 *
 * Happy path: begin what may be begun; sleep in one epoll instance over the handles' descriptors; reap those
 * that are readable, and begin their next batches, until the round is over and nothing is in flight.
 *
 * With a limit for the whole process (most_in_flight) its connections send in turn: each batch goes over
 * another connection than the one before, which by then was idle for a while.
 *
 * Failure modes: as a single producer's; descriptors run out: producer_main raises the limit first, as far
 * as it goes.
 *
 * Invariants: each handle is reaped until nothing is there before the next sleep (the descriptor is level
 * triggered, and is armed anew by the reap that finds nothing). */
#include <sys/epoll.h>
#include <unistd.h>

#include "producer.h"

#define EVENTS     64
#define LOOK_MS    100
#define SILENCE_NS INT64_C(30000000000)
#define NS_PER_MS  1000000

struct crowd {
    struct crew_state *crew;
    struct producer *producers;
    uint32_t count, turn;
    uint32_t refused; /* producers with refused batches, as counted by the last look */
    int epoll;
};

static int watch(struct crowd *crowd)
{
    crowd->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (crowd->epoll < 0)
        return error_set(&crowd->crew->report->error, -errno, "epoll: %s", strerror(errno));
    for (uint32_t i = 0; i < crowd->count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        int fd = walrus_fd(crowd->producers[i].handle);
        if (fd < 0 || epoll_ctl(crowd->epoll, EPOLL_CTL_ADD, fd, &event) < 0)
            return crew_fail(crowd->crew, &crowd->producers[i], fd < 0 ? fd : -errno,
                             "watching its descriptor");
    }
    return 0;
}

/* The next producers in turn begin a batch each, as long as the process may. */
static int begin_in_turn(struct crowd *crowd, enum phase phase)
{
    struct crew_state *crew = crowd->crew;
    for (uint32_t looked = 0; looked < crowd->count && crew->in_flight < crew->most_in_flight; looked++) {
        int result = producer_begin(&crowd->producers[crowd->turn], phase, 1);
        if (result < 0)
            return result;
        crowd->turn = (crowd->turn + 1) % crowd->count;
        if (result == 0 && (!crew_goes_on(crew, phase) || crew_next_due(crew) > now_ns()))
            break;
    }
    return 0;
}

/* Refused batches are sent again; with no limit for the process each producer fills its own depth. */
static int look_at_all(struct crowd *crowd, enum phase phase, int64_t *wake_at)
{
    crowd->refused = 0;
    for (uint32_t i = 0; i < crowd->count; i++) {
        struct producer *p = &crowd->producers[i];
        int64_t next = INT64_MAX;
        int result = p->refused_count > 0 ? producer_retry(p, now_ns(), &next) : 0;
        if (result == 0 && crowd->crew->load->in_flight == 0)
            result = producer_begin(p, phase, UINT32_MAX);
        if (result < 0)
            return result;
        crowd->refused += p->refused_count > 0;
        *wake_at = next < *wake_at ? next : *wake_at;
    }
    return 0;
}

static int reap_ready(struct crowd *crowd, int timeout_ms)
{
    struct epoll_event events[EVENTS];
    int ready = epoll_wait(crowd->epoll, events, EVENTS, timeout_ms);
    for (int i = 0; i < ready; i++) {
        struct producer *p = &crowd->producers[events[i].data.u32];
        int result;
        while ((result = producer_reap(p)) > 0)
            continue;
        if (result < 0)
            return result;
        crowd->refused += p->refused_count > 0;
        if (crowd->crew->load->in_flight == 0 &&
            producer_begin(p, phase_now(crowd->crew->phases), UINT32_MAX) < 0)
            return crowd->crew->report->error.code;
    }
    return 0;
}

int crowd_loop(struct crew_state *crew, struct producer *producers, uint32_t count)
{
    struct crowd crowd = {.crew = crew, .producers = producers, .count = count, .epoll = -1};
    bool looked = false;
    int result = watch(&crowd);
    while (result == 0) {
        enum phase phase = phase_now(crew->phases);
        int64_t wake_at = INT64_MAX, now = now_ns();
        if (!looked || crowd.refused > 0 || crew->interval != 0)
            result = look_at_all(&crowd, phase, &wake_at);
        looked = true;
        if (result == 0 && crew->load->in_flight != 0)
            result = begin_in_turn(&crowd, phase);
        if (result < 0 || (!crew_goes_on(crew, phase) && crew->in_flight == 0 && crowd.refused == 0))
            break;
        if (now - crew->last_progress > SILENCE_NS)
            result = crew_fail(crew, &producers[0], -ETIMEDOUT, "no answer for 30 s");
        if (crew->interval != 0 && crew_next_due(crew) < wake_at)
            wake_at = crew_next_due(crew);
        int timeout = LOOK_MS;
        if (wake_at < now + (int64_t)LOOK_MS * NS_PER_MS)
            timeout = wake_at > now ? (int)((wake_at - now) / NS_PER_MS) : 0;
        if (result == 0)
            result = reap_ready(&crowd, timeout);
    }
    if (crowd.epoll >= 0)
        close(crowd.epoll);
    return result;
}
