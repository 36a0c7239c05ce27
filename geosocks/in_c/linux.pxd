# What these modules need in C's terms: sizes that C wants to know beforehand, and Linux's own calls.

cdef enum:
    ENDS = 256  # at a time: two for each session
    FDS = 65536  # descriptors from this on are strangers, whosever they are
    EVENTS = 64  # told of at a time, as gevent's loop is
    ROOM = 16384  # octets; a message of so many is taken for the beginning of a larger one
    SLICE = 1000000  # nanoseconds after which the loop's timers have their turn
    # Milliseconds of silence that are waited for.  Less than a tick of the kernel's own clock (4 for
    # many) has it set a timer each time, which costs more than all the rest of a message.
    WAIT = 5
    # Nanoseconds of staying awake for an answer: nearly all of a peer's that does not sleep itself
    # come in 12,000, and to fall asleep and be woken takes 8,000 or more.
    LOOK = 16000
    # Where that pays, four of five times, it should go on, so each time that it does not weighs as
    # three that it does; then so many are not tried: 8, 64, 256 (powers of 2).
    IN_VAIN = 3
    MOST_DOUBT = 8

cdef struct peer:  # whoever is at a descriptor
    short place  # 1 more than its place among the ends; 0 for a stranger
    short doubt  # whether it answers at once
    short asleep  # answers that are not stayed awake for

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd

    struct epoll_event:
        unsigned int events
        epoll_data_t data

    unsigned int EPOLLIN

    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)
