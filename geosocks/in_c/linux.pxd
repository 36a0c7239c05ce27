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

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd

    struct epoll_event:
        unsigned int events
        epoll_data_t data

    unsigned int EPOLLIN

    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)
