/* device.c: what a disk, a kernel and a controller do to the writes of a broker.
 *
 * A block has a value that reads return (`current`) and, while that is not on the disk, the values that a
 * power cut may leave (`media`): the new one, any that it held since the last good flush, or torn (0).
 *
 *   write good       current = new;             media += new, torn
 *   write failed     current = old, new, torn;  media += new, torn, current
 *   flush good       settled: media = current, but not for poisoned blocks
 *   flush failed     poisoned: reads and later flushes know nothing of it; written again: as any other
 *   power cut        each block by itself: any of media
 *   kill             what was in flight lands or does not, by block; caches live on. Without the lock of
 *                    the file it may land while the successor starts
 *
 * Blocks of one write are torn independently. Names in the folder are blocks too (its sync flushes), and so
 * are the two names of the checkpoints, whose value is a whole file. */
#include "model.h"

#include "../../shared/base.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------- choices */

unsigned choose(struct run *r, unsigned of)
{
    struct choices *c = &r->choices;
    if (c->at == c->count) {
        check_bug(c->count < CHOICES);
        c->taken[c->count] = 0;
        c->of[c->count++] = u8(of);
    }
    return c->taken[c->at++];
}

void say(struct run *r, const char *format, ...)
{
    if (r->words == NULL)
        return;
    va_list args;
    va_start(args, format);
    vfprintf(r->words, format, args);
    va_end(args);
    fputc('\n', r->words);
}

bool violated(struct run *r, const char *what)
{
    if (r->violation == NULL)
        r->violation = what;
    say(r, "VIOLATION: %s", what);
    return false;
}

const char *uid_text(unsigned uid, char text[8])
{
    text[0] = (char)('a' + uid / ATTEMPTS);
    unsigned attempt = uid % ATTEMPTS, at = 1;
    while (attempt-- > 0)
        text[at++] = '\'';
    text[at] = 0;
    return text;
}

/* ----------------------------------------------------------------------------------------------- blocks */

void set_settled(struct block *block, value_id value)
{
    memset(block, 0, sizeof *block);
    block->current = value;
}

static void media_add(struct block *block, value_id value)
{
    if (block->count == 0) {
        block->media[0] = block->current;
        block->count = 1;
    }
    unsigned at = 0;
    while (at < block->count && block->media[at] < value)
        at++;
    if (at < block->count && block->media[at] == value)
        return;
    check_bug(block->count < MEDIA);
    memmove(&block->media[at + 1], &block->media[at], (block->count - at) * sizeof block->media[0]);
    block->media[at] = value;
    block->count++;
}

/* One value that reads agree with is as good as settled. */
static void settle_if_single(struct block *block)
{
    if (block->count == 1 && block->media[0] == block->current)
        set_settled(block, block->current);
}

static void block_write(struct block *block, value_id value, value_id current)
{
    media_add(block, value);
    media_add(block, 0);
    media_add(block, current);
    block->current = current;
    block->poisoned = false;
    settle_if_single(block);
}

static void block_flush(struct block *block)
{
    if (!block->poisoned)
        set_settled(block, block->current);
}

static bool pending(const struct file *file)
{
    for (unsigned i = 0; i < file->length; i++)
        if (file->blocks[i].count > 0 && !file->blocks[i].poisoned)
            return true;
    return false;
}

bool file_there(const struct run *r, unsigned file)
{
    return r->s.files[file].entry.current != 0;
}

/* A name that is gone for good takes its blocks along; the slot is free for a new file. */
static void forget_if_gone(struct file *file)
{
    if (file->entry.current != 0 || file->entry.count != 0)
        return;
    memset(file, 0, sizeof *file);
}

/* ---------------------------------------------------------------------------------------------- crashes */

/* The broker's life is over: what it had in memory goes with it. */
bool end_life(struct run *r, const char *why)
{
    say(r, "  %s", why);
    memset(&r->s.broker, 0, sizeof r->s.broker);
    r->s.gathered = false;
    r->s.again_chunk = 0;
    if (r->s.mode == MODE_RUN)
        r->s.mode = MODE_START;
    return false;
}

static void promise_of_written_ends(struct run *r)
{
    r->s.ledger.written = 0;
}

static bool crash(struct run *r, bool power, const char *during)
{
    r->s.crashes--;
    say(r, "  %s%s", power ? "POWER CUT" : "KILL", during);
    (void)end_life(r, "the broker is gone");
    r->s.mode = power ? MODE_POWER : MODE_START;
    if (power)
        promise_of_written_ends(r);
    return false;
}

bool crash_point(struct run *r)
{
    if (r->s.crashes == 0)
        return true;
    unsigned kind = choose(r, 3);
    return kind == 0 || crash(r, kind == 1, "");
}

bool fault(struct run *r, const char *what)
{
    if (r->s.faults == 0 || choose(r, 2) == 0)
        return false;
    r->s.faults--;
    say(r, "  FAULT: %s", what);
    return true;
}

static const char *const landed_words[] = {"nothing of it", "its new bytes", "torn bytes"};

/* Killed with the write in flight: each block lands now, later, or not at all. */
static void killed_in_flight(struct run *r, unsigned file, unsigned at, const value_id *values,
                             unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        unsigned lands = choose(r, keeps(r, RULE_LOCK) ? 2 : 3);
        if (lands == 1) {
            block_write(&r->s.files[file].blocks[at + i], values[i], values[i]);
            say(r, "  block %u of file %u lands", at + i, file);
        } else if (lands == 2 && r->s.late_count < LATE) {
            r->s.late[r->s.late_count++] = (struct late){u8(file), u8(at + i), values[i]};
            say(r, "  block %u of file %u is still under way", at + i, file);
        }
    }
}

void late_writes_land(struct run *r)
{
    for (unsigned i = 0; i < r->s.late_count; i++) {
        const struct late *late = &r->s.late[i];
        say(r, "  the dead broker's write to block %u of file %u lands", late->at, late->file);
        block_write(&r->s.files[late->file].blocks[late->at], late->value, late->value);
    }
    memset(r->s.late, 0, sizeof r->s.late);
    r->s.late_count = 0;
}

static void cut_block(struct run *r, struct block *block, const char *what, unsigned number)
{
    if (block->count == 0)
        return;
    value_id value = block->media[block->count > 1 ? choose(r, block->count) : 0];
    if (value != block->current)
        say(r, "  %s %u: %s", what, number, value == 0 ? "lost or torn" : "an older value");
    set_settled(block, value);
}

void power_cut(struct run *r)
{
    say(r, "after the power cut (what is not named is on the disk as written):");
    for (unsigned f = 0; f < FILES; f++) {
        struct file *file = &r->s.files[f];
        cut_block(r, &file->entry, "the name of file", f);
        if (file->entry.current == 0)
            forget_if_gone(file);
        for (unsigned i = 0; i < file->length; i++) {
            char what[32];
            snprintf(what, sizeof what, "file %u, block", f);
            cut_block(r, &file->blocks[i], what, i);
        }
    }
    for (unsigned i = 0; i < 2; i++)
        cut_block(r, &r->s.checkpoint[i], "checkpoint", i);
    memset(r->s.late, 0, sizeof r->s.late);
    r->s.late_count = 0;
    r->s.mode = MODE_START;
}

/* ------------------------------------------------------------------------------------------------- I/O */

static bool touches_committed(const struct file *file, unsigned at, unsigned count)
{
    unsigned bits = ((1u << count) - 1) << at;
    return (file->committed & bits) != 0;
}

/* A failed write leaves each block as it was, as it was to be, or torn. */
static void write_failed(struct run *r, struct block *blocks, const value_id *values, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        value_id options[3] = {blocks[i].current, values[i], 0};
        unsigned n = 2; /* "as it was" is the same as torn for a blank block */
        if (blocks[i].current != 0 && blocks[i].current != values[i])
            n = 3;
        else if (blocks[i].current == values[i])
            n = values[i] == 0 ? 1 : 2, options[1] = 0;
        unsigned which = n > 1 ? choose(r, n) : 0;
        say(r, "    and leaves in block %u of it %s", i,
            landed_words[options[which] == values[i]                     ? 1
                         : options[which] == 0 && blocks[i].current != 0 ? 2
                                                                         : 0]);
        block_write(&blocks[i], values[i], options[which]);
    }
}

/* One write of `count` blocks; *failed: it was reaped with an error. */
bool write_blocks(struct run *r, unsigned file, unsigned at, const value_id *values, unsigned count,
                  const char *what, bool *failed)
{
    struct file *f = &r->s.files[file];
    check_bug(at + count <= f->length);
    if (touches_committed(f, at, count))
        return violated(r, "G17: a write touches a block that holds committed bytes");
    unsigned kind = r->s.crashes > 0 ? choose(r, 3) : 0;
    if (kind != 0)
        say(r, "  writing %s (file %u, block %u)", what, file, at);
    if (kind == 1) {
        for (unsigned i = 0; i < count; i++) {
            media_add(&f->blocks[at + i], values[i]);
            media_add(&f->blocks[at + i], 0);
            settle_if_single(&f->blocks[at + i]);
        }
        return crash(r, true, " with that write in flight");
    }
    if (kind == 2) {
        killed_in_flight(r, file, at, values, count);
        return crash(r, false, " with that write in flight");
    }
    say(r, "  write %s (file %u, block %u)", what, file, at);
    *failed = fault(r, "that write fails");
    if (*failed)
        write_failed(r, &f->blocks[at], values, count);
    for (unsigned i = 0; i < count && !*failed; i++)
        block_write(&f->blocks[at + i], values[i], values[i]);
    return true;
}

bool flush_file(struct run *r, unsigned file, const char *what, bool *failed)
{
    struct file *f = &r->s.files[file];
    *failed = false;
    if (!pending(f))
        return true; /* changes nothing: a crash or a fault here is one at the next I/O */
    if (!crash_point(r))
        return false;
    say(r, "  flush %s (file %u)", what, file);
    *failed = fault(r, "that flush fails; reads go on to show what it dropped");
    for (unsigned i = 0; i < f->length; i++) {
        if (*failed)
            f->blocks[i].poisoned = f->blocks[i].count > 0;
        else if (f->blocks[i].count > 0)
            block_flush(&f->blocks[i]);
    }
    if (*failed)
        promise_of_written_ends(r);
    return true;
}

/* Truncated in the background: done by now or not, on the disk or not. */
void cut_behind(struct run *r, unsigned file, unsigned end)
{
    struct file *f = &r->s.files[file];
    bool any = false;
    if (!r->program->cuts)
        return;
    for (unsigned i = end; i < f->length; i++)
        any |= f->blocks[i].current != 0;
    if (!any || choose(r, 2) == 0)
        return;
    say(r, "  file %u is cut at block %u", file, end);
    for (unsigned i = end; i < f->length; i++)
        block_write(&f->blocks[i], 0, 0);
}

bool sync_folder(struct run *r, bool *failed)
{
    bool any = r->s.checkpoint[0].count + r->s.checkpoint[1].count > 0;
    *failed = false;
    for (unsigned f = 0; f < FILES; f++)
        any |= r->s.files[f].entry.count > 0;
    if (!any)
        return true;
    if (!crash_point(r))
        return false;
    say(r, "  flush the folder");
    *failed = fault(r, "the flush of the folder fails");
    if (*failed)
        return true; /* a failed journal commit stops the file system: names stay undecided */
    for (unsigned f = 0; f < FILES; f++) {
        set_settled(&r->s.files[f].entry, r->s.files[f].entry.current);
        forget_if_gone(&r->s.files[f]);
    }
    for (unsigned i = 0; i < 2; i++)
        set_settled(&r->s.checkpoint[i], r->s.checkpoint[i].current);
    return true;
}

bool set_entry(struct run *r, unsigned file, bool there)
{
    if (!crash_point(r))
        return false;
    say(r, "  %s file %u", there ? "give its name to" : "remove", file);
    struct block *entry = &r->s.files[file].entry;
    media_add(entry, there);
    entry->current = there;
    settle_if_single(entry);
    return true;
}

/* Renames a new file over that name. */
bool set_checkpoint(struct run *r, unsigned which, value_id value)
{
    if (!crash_point(r))
        return false;
    say(r, "  rename the new checkpoint over checkpoint-%u", which);
    struct block *block = &r->s.checkpoint[which];
    media_add(block, value);
    block->current = value;
    settle_if_single(block);
    return true;
}

/* Create, allocate, flush (all of that under a name that a start removes), rename, flush of the folder. */
bool make_file(struct run *r, unsigned *file, bool *failed)
{
    unsigned f = 0;
    while (f < FILES && (r->s.files[f].entry.current != 0 || r->s.files[f].entry.count != 0))
        f++;
    check_bug(f < FILES);
    *file = f;
    r->s.files[f].length = r->program->length;
    if (!set_entry(r, f, true))
        return false;
    if (!keeps(r, RULE_FOLDER_SYNC)) {
        *failed = false;
        return true;
    }
    return sync_folder(r, failed);
}

static void highest_nonce(const struct run *r, const struct block *block, uint8_t *highest)
{
    unsigned count = block->count > 0 ? block->count : 1;
    for (unsigned k = 0; k < count; k++) {
        uint8_t nonce = value_nonce(r->values, block->count > 0 ? block->media[k] : block->current);
        *highest = nonce > *highest ? nonce : *highest;
    }
}

/* One above every nonce that a block may still turn out to hold: drawn at random, it is none of them. */
uint8_t fresh_nonce(const struct run *r)
{
    uint8_t highest = 0;
    for (unsigned f = 0; f < FILES; f++)
        for (unsigned i = 0; i < r->s.files[f].length; i++)
            highest_nonce(r, &r->s.files[f].blocks[i], &highest);
    for (unsigned i = 0; i < 2; i++)
        highest_nonce(r, &r->s.checkpoint[i], &highest);
    return u8(highest + 1u);
}
