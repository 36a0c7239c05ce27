# What these modules need in C's terms: sizes that C wants to know beforehand, and Linux's own calls.

cdef enum:
    ENDS = 256  # at a time: two for each session
    FDS = 65536  # descriptors from this on are strangers, whosever they are
    EVENTS = 64  # told of at a time, as gevent's loop is
    AT_ONCE = 128  # of a hub's connections: both ends of so many sessions as are accepted at once
    ROOM = 16384  # octets; a message of so many is taken for the beginning of a larger one
    SLICE = 3000000  # nanoseconds after which the loop's timers have their turn
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
    OFTEN = 32  # rounds of messages, in the first of which others are looked for

cdef struct peer:  # whoever is at a descriptor
    short place  # 1 more than its place among the ends; 0 for a stranger
    short doubt  # whether it answers at once
    short asleep  # answers that are not stayed awake for

cdef enum:
    FEWEST_WATCHED = 256  # descriptors for which there is room at first
    STALE = 16  # times in a row that something closed is told of; then it does not go by itself

cdef struct watched:  # who is to be called for a descriptor
    void *wake  # an object; NULL where nobody is
    unsigned int turn  # how many have had this number
    bint known  # it is on the epoll
    bint keep  # and called each time

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        unsigned long long u64

    struct epoll_event:
        unsigned int events
        epoll_data_t data

    unsigned int EPOLLIN
    int EPOLL_CLOEXEC
    int EPOLL_CTL_ADD
    int EPOLL_CTL_DEL
    int EPOLL_CTL_MOD

    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)

cdef enum:
    LITTLE = 448  # octets that are read by way of the stack
    NAME = 46  # octets of an address as text (INET6_ADDRSTRLEN)
    BATCH = 32  # datagrams at a time
    HEAD = 22  # octets before a datagram, where the longest header of an IP address fits
    LENGTH = 65536  # octets; UDP's Length ends at 65,535, so no datagram is ever cut
    # Octets from one datagram to the next: by a page and some lines more than a power of two, or the
    # first octets of all of them would contend for the same few places of the processor's cache.
    STRIDE = 70272
    ARENA = 2248704  # BATCH of these
    WAYS = 4  # places in which the same key may stand
    FEWEST = 8  # places of a table at first,
    MOST = 2048  # and at last

cdef extern from "<errno.h>" nogil:
    int EINPROGRESS

cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        unsigned int s_addr

    struct in6_addr:
        unsigned char s6_addr[16]

    struct sockaddr_in:
        unsigned short sin_family
        unsigned short sin_port
        in_addr sin_addr

    struct sockaddr_in6:
        unsigned short sin6_family
        unsigned short sin6_port
        unsigned int sin6_flowinfo
        in6_addr sin6_addr
        unsigned int sin6_scope_id

    int IPPROTO_TCP

    unsigned int htonl(unsigned int number)
    unsigned int ntohl(unsigned int number)
    unsigned short htons(unsigned short number)
    unsigned short ntohs(unsigned short number)

cdef extern from "<netinet/tcp.h>" nogil:
    int TCP_NODELAY
    int TCP_CONGESTION

cdef enum:
    TCP_CA_NAME_MAX = 16  # octets (linux/tcp.h)

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *octets)
    const char *inet_ntop(int family, const void *octets, char *text, unsigned int size)

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t

    struct sockaddr:
        pass

    struct sockaddr_storage:
        unsigned short ss_family

    struct iovec:
        void *iov_base
        size_t iov_len

    struct msghdr:
        void *msg_name
        unsigned int msg_namelen
        iovec *msg_iov
        size_t msg_iovlen

    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len

    int AF_INET
    int AF_INET6
    int SOCK_STREAM
    int SOCK_NONBLOCK
    int SOCK_CLOEXEC
    int MSG_DONTWAIT

    int accept4(int fd, sockaddr *name, socklen_t *size, int flags)
    int connect(int fd, const sockaddr *name, socklen_t size)
    int getsockname(int fd, sockaddr *name, socklen_t *size)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *size)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
    int shutdown(int fd, int how)
    int socket(int family, int kind, int protocol)
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, void *timeout)
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)

ctypedef union Name:
    sockaddr_in v4
    sockaddr_in6 v6

ctypedef struct Place:
    void *key  # a bytes object; NULL where nothing is
    unsigned int hash
    int fd
    Name name
    unsigned int name_size
    double asked
