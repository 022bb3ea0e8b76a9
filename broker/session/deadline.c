/* deadline.c: what ends by itself at a given time, of all sessions: a binary heap, the earliest first.
 *
 * Happy path
 *   1. deadline_set: something begins to wait and has a time by which it is to end.
 *   2. deadline_next tells the loop how long it may sleep; deadline_turn calls `due` of what is due, which is
 *      off the heap by then.
 *   3. deadline_clear: it ended before.
 *
 * Cost: nothing due, O(1) in each turn; O(log n) for each that comes and goes.
 *
 * Failure mode: no memory for one more: -ENOMEM, and it is not on the heap. The heap only grows, to the most
 * that ever waited at once; that is bounded by the entries of all rings.
 *
 * Invariant: heap[i - 1]->place is i; place 0 is not on the heap. */
#include "session.h"

static void put(struct deadlines *all, uint32_t place, struct deadline *deadline)
{
    all->heap[place - 1] = deadline;
    deadline->place = place;
}

static void rise(struct deadlines *all, uint32_t place, struct deadline *deadline)
{
    for (; place > 1 && all->heap[place / 2 - 1]->at > deadline->at; place /= 2)
        put(all, place, all->heap[place / 2 - 1]);
    put(all, place, deadline);
}

static void sink(struct deadlines *all, uint32_t place, struct deadline *deadline)
{
    while (place <= all->count / 2) {
        uint32_t child = 2 * place;
        if (child < all->count && all->heap[child]->at < all->heap[child - 1]->at)
            child++;
        if (all->heap[child - 1]->at >= deadline->at)
            break;
        put(all, place, all->heap[child - 1]);
        place = child;
    }
    put(all, place, deadline);
}

int deadline_set(struct server *server, struct deadline *deadline, int64_t at,
                 void (*due)(struct server *server, struct deadline *deadline))
{
    struct deadlines *all = &server->deadlines;
    check_bug(deadline->place == 0);
    if (all->count == all->room) {
        uint32_t room = all->room == 0 ? 64 : all->room * 2;
        struct deadline **heap = realloc(all->heap, room * sizeof(struct deadline *));
        if (heap == NULL)
            return -ENOMEM;
        all->heap = heap;
        all->room = room;
    }
    deadline->at = at;
    deadline->due = due;
    rise(all, ++all->count, deadline);
    return 0;
}

void deadline_clear(struct server *server, struct deadline *deadline)
{
    struct deadlines *all = &server->deadlines;
    uint32_t place = deadline->place;
    if (place == 0)
        return;
    check_bug(place <= all->count && all->heap[place - 1] == deadline);
    deadline->place = 0;
    struct deadline *last = all->heap[--all->count];
    if (last == deadline)
        return;
    if (place > 1 && all->heap[place / 2 - 1]->at > last->at)
        rise(all, place, last);
    else
        sink(all, place, last);
}

int64_t deadline_next(const struct server *server)
{
    return server->deadlines.count == 0 ? INT64_MAX : server->deadlines.heap[0]->at;
}

/* Those that were on the heap when the turn began: one that sets itself again waits for the next. */
void deadline_turn(struct server *server, int64_t now)
{
    for (uint32_t most = server->deadlines.count; most > 0 && deadline_next(server) <= now; most--) {
        struct deadline *first = server->deadlines.heap[0];
        deadline_clear(server, first);
        first->due(server, first);
    }
}

void deadline_free(struct server *server)
{
    check_bug(server->deadlines.count == 0);
    free(server->deadlines.heap);
}
