# Runs the user's functions. Standard library only, CPython 3.6 and newer.
#
# Descriptor 0 is a socket to the pooler's keeper. Its first message brings what to load, and the
# descriptors of everything else: queues of calls that all processes share, one datagram a call;
# a journal that the pooler reads when this process hangs or dies; for each of the pooler's loops
# a file with texts that are too long for a datagram and a socket for results.
#
# A call is received into the journal and its result is put there before it is sent, so that the
# pooler can always tell what was begun and what was finished.
import _thread, array, atexit, codecs, importlib.machinery, importlib.util, inspect, mmap, os, pickle, select, signal, socket
import struct, sys, time, traceback, types

OFF, SAME, GIVEN, FAILED, NONE = 0, 1, 2, 3, 4
CALL = struct.Struct("<QHBBHHIQ")
RESULT = struct.Struct("<IQBBBBIII")
ARENA = struct.Struct("<IH")
VERDICT, SHADOW = 0, 1
IN_TRANSACTION, IN_FILE, NO_REWRITE, NO_ROUTE = 1, 2, 4, 8
STATE, STATE_RUNNING, STATE_SHADOW = 16, 1, 2
SERVED = 17
FRAME_AT, FRAME_MAX = 64, 65472
ARENA_AT = FRAME_AT + FRAME_MAX
BATCH, LINGER = 8, 0.00005
CONTROL_EVERY = 0.05
COUNT_EVERY = 0.1
TEXT_MAX, LINE_MAX, PARSED_MAX = 64 * 1024, 1000, 1000


def load(path, source, known):
    path = os.path.abspath(os.path.expanduser(path))
    if path in known:
        return known[path]
    directory = os.path.dirname(path)
    if directory not in sys.path:
        sys.path.insert(0, directory)
    name = "hook_module_%d" % sum(1 for one in sys.modules if one.startswith("hook_module_"))
    loader = importlib.machinery.SourceFileLoader(name, path)
    spec = importlib.util.spec_from_loader(name, loader)
    module = importlib.util.module_from_spec(spec)
    module.__file__ = path
    sys.modules[name] = module
    exec(compile(source, path, "exec"), module.__dict__)
    known[path] = module
    return module


def function(module, name):
    found = getattr(module, name, None)
    if found is None:
        raise TypeError("no function %s" % name)
    if not callable(found):
        raise TypeError("%s is not callable" % name)
    inner = found if inspect.isroutine(found) else getattr(found, "__call__", found)
    for one in (found, inner):
        if inspect.iscoroutinefunction(one) or inspect.isgeneratorfunction(one) \
                or inspect.isasyncgenfunction(one):
            raise TypeError("%s is async or a generator" % name)
    signature = inspect.signature(found)
    for count in (3, 2):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        if count == 3:
            return found, 3
        return (lambda user, query, _: found(user, query)), 2
    raise TypeError("%s takes neither 3 nor 2 arguments" % name)


NAMES = {b"utf8": "utf-8", b"unicode": "utf-8", b"sql_ascii": "utf-8", b"koi8r": "koi8-r",
         b"koi8": "koi8-r", b"koi8u": "koi8-u", b"latin1": "latin-1", b"latin5": "iso8859-9",
         b"latin6": "iso8859-10", b"latin7": "iso8859-13", b"latin8": "iso8859-14",
         b"latin9": "iso8859-15", b"latin10": "iso8859-16", b"latin2": "iso8859-2",
         b"latin3": "iso8859-3", b"latin4": "iso8859-4", b"euc_jis_2004": "euc_jis_2004",
         b"euc_cn": "gb2312", b"uhc": "cp949", b"win949": "cp949", b"gbk": "gbk",
         b"win936": "gbk", b"win950": "big5", b"windows950": "big5", b"sjis": "cp932",
         b"mskanji": "cp932", b"shiftjis": "cp932", b"win932": "cp932", b"alt": "cp866",
         b"win": "cp1251", b"abc": "cp1258", b"tcvn": "cp1258", b"vscii": "cp1258"}
CODECS = {}


def codec(name):
    found = CODECS.get(name)
    if found is None:
        # Drivers put some into quotes, which servers do not mind.
        plain = name.strip(b"'\" ").lower()
        text = NAMES.get(plain) or NAMES.get(plain.replace(b"-", b"").replace(b"_", b""))
        if text is None:
            text = plain.decode("ascii", "replace")
            if text.startswith(("win", "windows")) and text.lstrip("windos-_").isdigit():
                text = "cp" + text.lstrip("windos-_")
        try:
            found = codecs.lookup(text).name
            "x".encode(found)
        except Exception:
            found = "utf-8"
        if len(CODECS) > 1000:
            CODECS.clear()
        CODECS[name] = found
    return found


def describe(error):
    try:
        text = "%s: %s" % (type(error).__name__, error)
    except BaseException:
        text = type(error).__name__
    return text.replace("\n", " ")[:1000].encode("utf-8", "replace")


def failure(error):
    try:
        lines = traceback.format_exception(type(error), error, error.__traceback__, 20)
        trace = "".join(lines)[-4000:].encode("utf-8", "replace")
    except BaseException:
        trace = b""
    return FAILED, describe(error) + b"\0" + trace


class Functions:
    """The two functions of one pair of modules."""

    def __init__(self, files, sources, packet_max):
        known = {}
        self.rewrite = self.route = None
        self.arity = [0, 0]
        self.packet_max = packet_max
        if files[0]:
            module = load(files[0], sources[0], known)
            self.rewrite, self.arity[0] = function(module, "rewrite_query")
        if files[1]:
            module = load(files[1], sources[1], known)
            self.route, self.arity[1] = function(module, "routing_rules")
        self.modules = list(known.values())

    def call(self, user, text, busy, encoding, flags=0):
        """Both verdicts about a message."""
        rewritten = key = (OFF, b"")
        if self.rewrite is not None and not flags & NO_REWRITE:
            try:
                result = self.rewrite(user, text, busy)
                if result is None:
                    rewritten = (NONE, b"")
                elif not isinstance(result, str):
                    raise TypeError("rewrite_query returned %s" % type(result).__name__)
                elif result == text:
                    rewritten = (SAME, b"")
                else:
                    if "\0" in result:
                        raise ValueError("rewrite_query returned a NUL")
                    out = result.encode(encoding, "surrogateescape")
                    if len(out) > self.packet_max:
                        raise ValueError("rewrite_query returned more than max_packet_size")
                    rewritten = (GIVEN, out)
                    text = result
            except BaseException as error:
                rewritten = failure(error)
        if self.route is not None and not flags & NO_ROUTE:
            try:
                result = self.route(user, text, busy)
                if result is None:
                    key = (NONE, b"")
                elif not isinstance(result, str):
                    raise TypeError("routing_rules returned %s" % type(result).__name__)
                elif not result:
                    raise ValueError("routing_rules returned an empty string")
                elif "\0" in result:
                    raise ValueError("routing_rules returned a NUL")
                else:
                    key = (GIVEN, result.encode("utf-8"))
            except BaseException as error:
                key = failure(error)
        return rewritten, key


class Pooler:
    """What stands behind `import switchyard`: questions to the keeper, one at a time."""

    def __init__(self, channel):
        self.channel = channel
        self.pid = os.getpid()
        self.main = _thread.get_ident()
        self.lock = _thread.allocate_lock()
        self.parsed = {}
        self.grown = {}

    def send(self, letter, fields):
        if os.getpid() != self.pid:
            raise RuntimeError("the pooler does not know this process")
        body = letter
        for field in fields:
            data = field.encode("utf-8", "replace")
            body += struct.pack("<I", len(data)) + data
        self.channel.sendall(struct.pack("<I", len(body)) + body)

    def ask(self, letter, *fields):
        with self.lock:
            self.send(letter, fields)
            body = self.exactly(struct.unpack("<I", self.exactly(4))[0])
        found, at = [], 0
        while at < len(body):
            size = struct.unpack_from("<I", body, at)[0]
            found.append(body[at + 4:at + 4 + size].decode("utf-8", "replace"))
            at += 4 + size
        return found

    def exactly(self, count):
        got = b""
        while len(got) < count:
            chunk = self.channel.recv(count - len(got))
            if not chunk:
                raise OSError("the pooler does not answer")
            got += chunk
        return got

    def too_long(self, sql):
        size = len(sql) if len(sql) > TEXT_MAX else len(sql.encode("utf-8", "replace"))
        return "text of %d bytes is too long for the parser" % size if size > TEXT_MAX else None

    def parse(self, sql):
        fields = self.parsed.get(sql)
        if fields is None:
            error = self.too_long(sql)
            if error:
                return error
            fields = self.ask(b"P", sql)
            if len(self.parsed) >= PARSED_MAX:
                self.parsed.clear()
            if len(sql) < LINE_MAX:
                self.parsed[sql] = fields
        if fields[0]:
            return fields[0]
        found, rest = [], iter(fields[1:])
        some = lambda: [next(rest) for _ in range(int(next(rest)))]
        for kind in rest:
            reads = next(rest) == "1"
            found.append((kind, some(), some(), reads))
        return found

    def fingerprint(self, sql):
        return (self.too_long(sql) is None and self.ask(b"F", sql) or [None])[0]

    def cluster(self, name):
        fields = self.ask(b"C", name)
        if not fields:
            return None
        readers, lags = fields[3:3 + int(fields[2])], fields[3 + int(fields[2]):]
        return fields[0], fields[1] or None, readers, \
            {node: int(lag) for node, lag in zip(lags[::2], lags[1::2])}

    def databases(self):
        fields = iter(self.ask(b"D"))
        return {name: {"host": host or None, "port": int(port), "dbname": dbname,
                       "pool_mode": mode, "disabled": disabled == "1"}
                for name, host, port, dbname, mode, disabled in zip(*[fields] * 6)}

    def log(self, level, text):
        with self.lock:
            self.send(b"L", [level, text[:LINE_MAX]])

    def count(self, name, amount):
        if _thread.get_ident() == self.main and os.getpid() == self.pid:
            # The main thread tells it when it has time.
            self.grown[name] = self.grown.get(name, 0) + amount
        else:
            with self.lock:
                self.send(b"I", [name, str(amount)])

    def tell(self):
        grown, self.grown = self.grown, {}
        if grown:
            with self.lock:
                self.send(b"I", [text for pair in grown.items() for text in map(str, pair)])

    def provide(self, source):
        module = types.ModuleType("switchyard")
        module.__file__ = "<switchyard>"
        exec(compile(source, module.__file__, "exec"), module.__dict__)
        module._backend = self
        sys.modules["switchyard"] = module


def outcome_text(outcome):
    code, data = outcome
    if code in (SAME, NONE):
        return b"unchanged"
    return {OFF: b"off", FAILED: b"failed: "}.get(code, b"") + data.split(b"\0")[0][:200]


def difference(name, first, second):
    if second[0] == OFF:
        return b""
    same = first == second or {first[0], second[0]} <= {SAME, NONE}
    if same or first[0] == second[0] == FAILED:
        return b""
    return name + b": " + outcome_text(second) + b" instead of " + outcome_text(first)


class Process:
    """This process: its channels to the pooler, and the calls."""

    def __init__(self):
        self.pid = os.getpid()
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, os.dup(0))
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        self.fds = array.array("i")
        body = self.message()
        fields = []
        at = 0
        while at < len(body):
            size = struct.unpack_from("<I", body, at)[0]
            fields.append(body[at + 4:at + 4 + size])
            at += 4 + size
        self.loops, self.both, self.rss_max, packet_max = (int(field) for field in fields[:4])
        files = [os.fsdecode(field) for field in fields[4:8]]
        sources = fields[8:12]
        fds = self.fds
        if len(fds) != 4 + 2 * self.loops:
            raise OSError("descriptors are missing")
        for fd in fds:
            os.set_inheritable(fd, False)
        datagram = lambda fd: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM, 0, fd)
        stream = lambda fd: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
        self.fast, self.slow = datagram(fds[0]), datagram(fds[1])
        self.journal = mmap.mmap(fds[2], 0)
        self.view = memoryview(self.journal)
        self.attics = list(fds[3:3 + self.loops])
        self.outs = [stream(fd) for fd in fds[3 + self.loops:-1]]
        self.pooler = Pooler(stream(fds[-1]))
        self.pooler.provide(fields[13])
        self.counted = 0.0
        self.room = len(self.journal) - ARENA_AT
        self.kept = self.kept_for = self.kept_count = 0
        self.kept_since = self.looked = 0.0
        self.statm = os.open("/proc/self/statm", os.O_RDONLY)
        self.page = os.sysconf("SC_PAGE_SIZE")
        self.since_rss = 0
        self.recycling = False
        self.users = {}
        try:
            self.main = Functions(files[:2], sources[:2], packet_max)
        except BaseException as error:
            trace = traceback.format_exception_only(type(error), error)[-1].strip()
            self.tell(b"X" + trace.encode("utf-8", "replace")[:4000])
            raise SystemExit(1)
        if fields[12]:
            self.renew(fields[12][1:])
        self.shadow = None
        if files[2] or files[3]:
            try:
                self.shadow = Functions(files[2:], sources[2:], packet_max)
            except BaseException as error:
                self.tell(b"W" + b"shadow module not loaded: " + describe(error))
        self.report()

    def report(self):
        modules = self.main.modules
        is_set = lambda name: [getattr(module, name, False) is True for module in modules]
        keys = []
        for module in modules:
            keys += [str(key) for key in getattr(module, "switchyard_keys", None) or ()]
        reload = [callable(getattr(module, "switchyard_reload", None)) for module in modules]
        flags = int(all(is_set("switchyard_pure"))) | int(any(is_set("switchyard_shared_state"))) << 1 \
            | int(any(reload)) << 2
        text = "%d %d %d\0" % (flags, self.main.arity[0], self.main.arity[1]) + "\0".join(keys)
        if flags & 2:
            self.both = 1
        self.tell(b"L" + text.encode("utf-8", "replace"))

    def tell(self, body):
        self.control.sendall(struct.pack("<I", len(body)) + body)

    def exactly(self, count):
        got = b""
        while len(got) < count:
            space = socket.CMSG_SPACE(253 * 4)
            chunk, parts, _, _ = self.control.recvmsg(min(count - len(got), 1 << 20), space)
            if not chunk:
                self.end()
            for level, kind, data in parts:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    self.fds.frombytes(data[:len(data) - len(data) % self.fds.itemsize])
            got += chunk
        return got

    def message(self):
        return self.exactly(struct.unpack("<I", self.exactly(4))[0])

    def obey(self):
        body = self.message()
        if body[:1] == b"E":
            self.end()
        elif body[:1] == b"G":
            self.tell(b"D" + self.globals())

    def globals(self):
        """What of the modules' globals can be passed to their successors."""
        found = []
        for module in self.main.modules:
            values = {}
            for name, value in list(module.__dict__.items()):
                if name.startswith("__") or inspect.ismodule(value) or callable(value):
                    continue
                try:
                    values[name] = pickle.dumps(value)
                except Exception:
                    continue
            found.append((module.__file__, values))
        return pickle.dumps(found)

    def renew(self, data):
        try:
            found = {}
            if data:
                found = dict(pickle.loads(data))
            for module in self.main.modules:
                take = getattr(module, "switchyard_reload", None)
                if not callable(take) or module.__file__ not in found:
                    continue
                old = {}
                for name, value in found[module.__file__].items():
                    try:
                        old[name] = pickle.loads(value)
                    except Exception:
                        continue
                take(old)
        except BaseException as error:
            self.tell(b"X" + b"switchyard_reload: " + describe(error))
            raise SystemExit(1)

    def end(self):
        self.flush()
        try:
            self.pooler.tell()
            atexit._run_exitfuncs()
            sys.stdout.flush()
        finally:
            os._exit(0)

    def flush(self):
        if self.kept:
            self.outs[self.kept_for].sendall(self.view[ARENA_AT:ARENA_AT + self.kept])
            self.kept = self.kept_count = 0
            self.view[SERVED] = 1
            ARENA.pack_into(self.journal, 0, 0, 0)

    def give(self, loop, frame):
        if self.kept and (loop != self.kept_for or self.kept + len(frame) > self.room):
            self.flush()
        if len(frame) > self.room:
            return self.outs[loop].sendall(frame)
        end = self.kept + len(frame)
        self.journal[ARENA_AT + self.kept:ARENA_AT + end] = frame
        ARENA.pack_into(self.journal, 0, end, loop)
        self.kept, self.kept_for = end, loop
        self.kept_count += 1

    def call(self, count, started):
        view = self.view
        call, loop, flags, encodings, users, _, size, offset = CALL.unpack_from(view, FRAME_AT)
        at = FRAME_AT + CALL.size
        name = bytes(view[at:at + encodings])
        at += encodings
        user = bytes(view[at:at + users])
        at += users
        if flags & IN_FILE:
            query = os.pread(self.attics[loop], size, offset)
            while len(query) < size:
                more = os.pread(self.attics[loop], size - len(query), offset + len(query))
                if not more:
                    raise OSError("a text is gone")
                query += more
        else:
            query = bytes(view[at:at + size])
        encoding = CODECS.get(name) or codec(name)
        who = self.users.get(user)
        if who is None:
            if len(self.users) > 10000:
                self.users.clear()
            who = self.users[user] = user.decode("utf-8", "surrogateescape")
        text = query.decode(encoding, "surrogateescape")
        busy = bool(flags & IN_TRANSACTION)
        rewritten, key = self.main.call(who, text, busy, encoding, flags)
        if os.getpid() != self.pid:
            # A function has forked and its child came back: the calls are its parent's.
            os._exit(0)
        took = min(int((time.monotonic() - started) * 1000000), 0xffffffff)
        first, second = rewritten[1], key[1]
        self.give(loop, RESULT.pack(RESULT.size - 4 + len(first) + len(second), call, VERDICT,
                                    rewritten[0], key[0], 0, len(first), len(second), took)
                  + first + second)
        if self.shadow is not None:
            self.flush()
            view[STATE] = STATE_SHADOW
            other, elsewhere = self.shadow.call(who, text, busy, encoding, flags)
            first = difference(b"rewrite_query", rewritten, other)
            second = difference(b"routing_rules", key, elsewhere)
            self.give(loop, RESULT.pack(RESULT.size - 4 + len(first) + len(second), call, SHADOW,
                                        0, 0, 0, len(first), len(second), 0) + first + second)

    def look_at_size(self):
        pages = os.pread(self.statm, 100, 0).split()
        size = int(pages[1]) * self.page
        if self.rss_max and size > self.rss_max:
            if not self.recycling:
                self.recycling = True
                self.tell(b"R%d" % (size >> 20))
            elif size > 2 * self.rss_max:
                self.end()

    def serve(self):
        fast, slow, both = self.fast.recv_into, self.slow.recv_into, self.both
        space = self.view[FRAME_AT:ARENA_AT]
        view = self.view
        now = time.monotonic
        epoll = select.epoll()
        epoll.register(self.control.fileno(), select.EPOLLIN)
        epoll.register(self.fast.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)
        if both:
            epoll.register(self.slow.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)
        control = self.control.fileno()
        dontwait = socket.MSG_DONTWAIT
        while True:
            count = 0
            try:
                count = fast(space, 0, dontwait)
            except BlockingIOError:
                if both:
                    try:
                        count = slow(space, 0, dontwait)
                    except BlockingIOError:
                        pass
            if count == 0:
                if self.kept:
                    self.flush()
                    continue
                grown = self.pooler.grown
                if grown and now() - self.counted >= COUNT_EVERY:
                    self.counted = now()
                    self.pooler.tell()
                    grown = None
                for fd, _ in epoll.poll(COUNT_EVERY if grown else -1):
                    if fd == control:
                        self.obey()
                self.looked = now()
                continue
            started = now()
            if self.kept == 0:
                self.kept_since = started
            view[STATE] = STATE_RUNNING
            self.call(count, started)
            view[STATE] = 0
            ended = now()
            if self.kept_count >= BATCH or ended - self.kept_since > LINGER:
                self.flush()
            self.since_rss += 1
            if self.since_rss >= 64 or ended - started > 0.001:
                self.since_rss = 0
                self.look_at_size()
            if ended - self.looked > CONTROL_EVERY:
                self.looked = ended
                self.pooler.tell()
                if select.select([control], [], [], 0)[0]:
                    self.obey()


def main():
    os.dup2(1, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        os.nice(5)
        import ctypes
        ctypes.CDLL(None).prctl(1, 9)
        if os.getppid() != int(sys.argv[1]):
            os._exit(1)
    except Exception:
        pass
    process = Process()
    try:
        process.serve()
    except OSError as error:
        sys.stderr.write("the connection to the pooler failed: %s\n" % error)
        os._exit(1)


main()
