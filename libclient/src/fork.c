/* fork.c: a handle does not survive fork.
 *
 * Parent and child would share rings, arena and eventfds without knowing of each other. A page that the
 * kernel wipes in the child (MADV_WIPEONFORK, Linux 4.14) holds a word; a call that finds it gone is in
 * the child. This costs one load per call, no system call, and no handler registered with pthread_atfork. */
#include "handle.h"

#include <sys/mman.h>

int walrus__fork_page(uint32_t **alive)
{
    void *page = mmap(NULL, LAYOUT_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return -errno;
    if (madvise(page, LAYOUT_PAGE, MADV_WIPEONFORK) != 0) {
        int code = -errno;
        munmap(page, LAYOUT_PAGE);
        return code;
    }
    *alive = page;
    **alive = ALIVE;
    return 0;
}

void walrus__fork_page_release(uint32_t *alive)
{
    if (alive != NULL)
        munmap(alive, LAYOUT_PAGE);
}
