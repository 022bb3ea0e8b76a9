/* epoll.c: Walrus in an event loop. Each line of standard input becomes one entry, written in place; batches
 * of up to 100 lines are in flight while the loop goes on reading. One descriptor tells when something is
 * done.
 *
 *   cc epoll.c $(pkg-config --cflags --libs libwalrus-client) -o epoll
 *   seq 100000 | ./epoll numbers */
#include <walrus.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

enum { LINES = 100, LINE_BYTES = 4096, DEPTH = 8 };

struct state {
    walrus *handle;
    walrus_topic *topic;
    unsigned long committed;
    char line[LINE_BYTES]; /* read, and not in a batch yet */
    int have_line, end_of_input;
};

static int complain(const struct state *state, const char *what)
{
    fprintf(stderr, "epoll: %s: %s; %lu lines committed\n", what, walrus_error(state->handle),
            state->committed);
    return -1;
}

/* Fills and submits one batch. 1 sent, 0 no room now (come back after a completion), -1 failed. */
static int send_batch(struct state *state)
{
    walrus_batch *batch;
    int lines = 0, result = walrus_batch_begin(state->topic, &batch);
    if (result < 0)
        return result == -EAGAIN ? 0 : complain(state, "begin");
    while (lines < LINES && result == 0 && !state->end_of_input) {
        char *line = state->line;
        if (!state->have_line && fgets(line, LINE_BYTES, stdin) == NULL) {
            state->end_of_input = 1;
            break;
        }
        state->have_line = 1; /* it is kept if there is no room for it now */
        void *entry;
        result = walrus_batch_reserve(batch, LINE_BYTES, &entry); /* the most it can be ... */
        if (result < 0)
            break;
        size_t length = strcspn(line, "\n");
        memcpy(entry, line, length);
        result = walrus_batch_trim(batch, length); /* ... and what it was */
        state->have_line = 0;
        lines++;
    }
    if (lines == 0) {
        walrus_batch_abort(batch);
        return result == 0 || result == -EAGAIN ? 0 : complain(state, "reserve");
    }
    struct walrus_submit_options options = {.size = sizeof options, .user_data = (uint64_t)lines};
    result = walrus_batch_submit(batch, &options);
    return result == 0 ? 1 : complain(state, "submit");
}

static int reap(struct state *state)
{
    struct walrus_completion done[DEPTH];
    int count = walrus_reap(state->handle, done, DEPTH);
    if (count < 0)
        return complain(state, "reap");
    for (int i = 0; i < count; i++) {
        if (done[i].result != 0)
            return complain(state, strerror(-done[i].result));
        state->committed += (unsigned long)done[i].user_data;
    }
    return 0;
}

static int loop(struct state *state, int epoll)
{
    while (!state->end_of_input || walrus_in_flight(state->handle) > 0) {
        while (!state->end_of_input && walrus_in_flight(state->handle) < DEPTH) {
            int sent = send_batch(state);
            if (sent < 0)
                return -1;
            if (sent == 0)
                break;
        }
        if (walrus_in_flight(state->handle) == 0)
            continue;
        struct epoll_event event;
        if (epoll_wait(epoll, &event, 1, -1) < 0 && errno != EINTR)
            return complain(state, "epoll_wait");
        if (reap(state) < 0)
            return -1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s TOPIC < LINES\n", argv[0]);
        return 2;
    }
    char words[512];
    struct walrus_connect_options options = {
        .size = sizeof options, .arena_bytes = 8 << 20, .error = words, .error_size = sizeof words};
    struct state state = {.handle = NULL};
    if (walrus_connect(&state.handle, &options) < 0) {
        fprintf(stderr, "epoll: %s\n", words);
        return 1;
    }
    int failed = walrus_topic_open(state.handle, argv[1], strlen(argv[1]), NULL, &state.topic);
    if (failed < 0) {
        complain(&state, "topic");
    } else {
        int epoll = epoll_create1(EPOLL_CLOEXEC);
        struct epoll_event event = {.events = EPOLLIN}; /* beside whatever else the program waits for */
        failed = epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, walrus_fd(state.handle), &event) < 0;
        if (failed)
            perror("epoll");
        else
            failed = loop(&state, epoll);
    }
    if (!failed)
        printf("%lu lines committed\n", state.committed);
    walrus_close(state.handle);
    return failed != 0;
}
