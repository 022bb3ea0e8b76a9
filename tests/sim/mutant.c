/* mutant.c: see mutant.h. */
#include "mutant.h"

#include "../../broker/log/internal.h"

enum mutant mutant;

/* NOLINTBEGIN(bugprone-reserved-identifier): the linker's names */
int __real_number_check(struct log *log, struct write *write);
int __wrap_number_check(struct log *log, struct write *write);
void __real_number_admit(struct pair *pair, uint64_t number);
void __wrap_number_admit(struct pair *pair, uint64_t number);
void __real_number_commit(struct log *log, struct pair *pair, const struct frame_header *frame);
void __wrap_number_commit(struct log *log, struct pair *pair, const struct frame_header *frame);
int __real_number_restore(struct log *log, uint64_t producer, struct topic *topic,
                          const struct number_state *state);
int __wrap_number_restore(struct log *log, uint64_t producer, struct topic *topic,
                          const struct number_state *state);
int __real_restore_checkpoint(struct log *log, const struct checkpoint_view *view, struct error *err);
int __wrap_restore_checkpoint(struct log *log, const struct checkpoint_view *view, struct error *err);
void __real_gather_drop_out_of_order(struct log *log);
void __wrap_gather_drop_out_of_order(struct log *log);
int __real_log_producer_again(struct log *log, uint64_t id, uint32_t uid, struct producer **out);
int __wrap_log_producer_again(struct log *log, uint64_t id, uint32_t uid, struct producer **out);
/* NOLINTEND(bugprone-reserved-identifier) */

int __wrap_number_check(struct log *log, struct write *write)
{
    int error = __real_number_check(log, write);
    if ((mutant == MUTANT_TAKES_DUPLICATES && error == 1) ||
        (mutant == MUTANT_TAKES_ANY_ORDER && error == -EAGAIN)) {
        write->flags = 0;
        return 0;
    }
    return error;
}

/* Without the check of the order, which is the log's own assertion against these mistakes. */
void __wrap_number_admit(struct pair *pair, uint64_t number)
{
    if (mutant == MUTANT_NONE)
        __real_number_admit(pair, number);
    else
        pair->admitted = number;
    if (mutant == MUTANT_COUNTS_EARLY)
        pair->last = number;
}

void __wrap_number_commit(struct log *log, struct pair *pair, const struct frame_header *frame)
{
    if (mutant != MUTANT_NONE) {
        pair->last = frame->number - 1;
        pair->admitted = max_u64(pair->admitted, frame->number);
    }
    __real_number_commit(log, pair, frame);
}

int __wrap_number_restore(struct log *log, uint64_t producer, struct topic *topic,
                          const struct number_state *state)
{
    if (state->next_only ? mutant == MUTANT_NUMBERS_WITHOUT_LOG : mutant == MUTANT_LOSES_PAIRS)
        return 0;
    return __real_number_restore(log, producer, topic, state);
}

int __wrap_restore_checkpoint(struct log *log, const struct checkpoint_view *view, struct error *err)
{
    int error = __real_restore_checkpoint(log, view, err);
    if (mutant == MUTANT_LOSES_HORIZON)
        log->producers.horizon = 0;
    return error;
}

void __wrap_gather_drop_out_of_order(struct log *log)
{
    if (mutant != MUTANT_KEEPS_WHAT_FOLLOWS)
        __real_gather_drop_out_of_order(log);
}

int __wrap_log_producer_again(struct log *log, uint64_t id, uint32_t uid, struct producer **out)
{
    int error = __real_log_producer_again(log, id, uid, out);
    return mutant == MUTANT_TAKES_FORGOTTEN && error == -ENODATA && id <= log->producers.horizon ? -ENOENT
                                                                                                 : error;
}
