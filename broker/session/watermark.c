/* watermark.c: the one file of watermarks that all clients map (layout.h says what is in it).
 *
 * Made before the log starts, which stores into its slots; sent to every client with the welcome; unmapped
 * after the log has stopped. Allocated in full, since a late page would be a SIGBUS here or in a client;
 * sealed, so that no client can change its length or write into it: one client's damage would be everybody's.
 */
#include "session.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

int watermarks_create(uint32_t slots, struct watermarks *out, struct error *err)
{
    check_bug(slots > 0);
    uint64_t bytes = align_up((uint64_t)slots * sizeof(struct watermark), LAYOUT_PAGE);
    uint8_t *at = NULL;
    int fd = -1;
    int rc = shared_file("walrus-watermarks", bytes, &fd);
    if (rc != 0)
        goto fail;
    rc = shared_map(fd, bytes, F_SEAL_FUTURE_WRITE, &at);
    if (rc != 0)
        goto close_file;
    *out = (struct watermarks){
        .slots = (struct watermark *)(void *)at, .count = slots, .bytes = bytes, .fd = fd};
    return 0;

close_file:
    close(fd);
fail:
    return error_set(err, rc, "the broker cannot make the file of watermarks (%llu bytes): %s",
                     (unsigned long long)bytes, strerror(-rc));
}

void watermarks_destroy(struct watermarks *watermarks)
{
    munmap(watermarks->slots, watermarks->bytes);
    close(watermarks->fd);
    *watermarks = (struct watermarks){.fd = -1};
}
