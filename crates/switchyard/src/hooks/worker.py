# Runs the user's functions. Standard library only, CPython 3.6 and newer.
#
# Arguments: file of rewrite_query, file of routing_rules; an empty one is off. Descriptor 0 is a
# socket to the pooler. First come the two sources, each with its length, so that all processes
# run the same code whatever happens to the files. First answer: a frame that is empty when everything is loaded, else the
# error. Then frames of calls come and frames of results go, in order.
import codecs, importlib.util, inspect, os, signal, socket, struct, sys, time, traceback

OFF, SAME, GIVEN, FAILED = 0, 1, 2, 3


def load(path, source, known):
    path = os.path.abspath(os.path.expanduser(path))
    if path in known:
        return known[path]
    directory = os.path.dirname(path)
    if directory not in sys.path:
        sys.path.insert(0, directory)
    spec = importlib.util.spec_from_file_location("hook_module_%d" % len(known), path)
    if spec is None:
        raise ImportError("%s is no Python file" % path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    exec(compile(source, path, "exec"), module.__dict__)
    known[path] = module
    return module


def function(module, name):
    found = getattr(module, name, None)
    if not callable(found):
        raise TypeError("no function %s" % name)
    if inspect.iscoroutinefunction(found) or inspect.isgeneratorfunction(found) \
            or inspect.isasyncgenfunction(found):
        raise TypeError("%s is async or a generator" % name)
    signature = inspect.signature(found)
    for count in (3, 2):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return found if count == 3 else lambda user, query, _: found(user, query)
    raise TypeError("%s takes neither 3 nor 2 arguments" % name)


CODECS = {}


def codec(name):
    found = CODECS.get(name)
    if found is None:
        text = name.decode("ascii", "replace").lower()
        text = {"utf8": "utf-8", "unicode": "utf-8", "koi8r": "koi8-r", "koi8u": "koi8-u",
                "sql_ascii": "utf-8", "latin9": "iso8859-15"}.get(text, text)
        if text.startswith("win") and text[3:].isdigit():
            text = "cp" + text[3:]
        try:
            found = codecs.lookup(text).name
        except LookupError:
            found = "utf-8"
        CODECS[name] = found
    return found


def describe(error):
    return ("%s: %s" % (type(error).__name__, error)).encode("utf-8", "replace")


def run(hook, user, text, busy, take):
    try:
        return take(hook(user, text, busy))
    except BaseException as error:
        traceback.print_exc()
        return FAILED, describe(error)


def call(rewrite, route, busy, user, encoding, query):
    user = user.decode("utf-8", "surrogateescape")
    text = query.decode(encoding, "surrogateescape")
    rewritten, key = (OFF, b""), (OFF, b"")
    if rewrite is not None:
        def take(result):
            if result is None or result == text and isinstance(result, str):
                return SAME, b""
            if not isinstance(result, str):
                raise TypeError("rewrite_query returned %s" % type(result).__name__)
            if "\0" in result:
                raise ValueError("rewrite_query returned a NUL")
            return GIVEN, result.encode(encoding, "surrogateescape")
        rewritten = run(rewrite, user, text, busy, take)
        if rewritten[0] == GIVEN:
            text = rewritten[1].decode(encoding, "surrogateescape")
    if route is not None:
        def take_key(result):
            if result is None:
                return SAME, b""
            if not isinstance(result, str) or not result:
                raise TypeError("routing_rules returned %s" % type(result).__name__)
            return GIVEN, result.encode("utf-8")
        key = run(route, user, text, busy, take_key)
    return struct.pack("<BBII", rewritten[0], key[0], len(rewritten[1]), len(key[1])) \
        + rewritten[1] + key[1]


def main():
    os.dup2(1, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        os.nice(5)
        import ctypes
        ctypes.CDLL(None).prctl(1, 9)
    except Exception:
        pass
    pipe = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)

    def send(frame):
        pipe.sendall(struct.pack("<I", len(frame)) + frame)

    def exactly(count):
        got = b""
        while len(got) < count:
            chunk = pipe.recv(count - len(got))
            if not chunk:
                sys.exit(1)
            got += chunk
        return got

    sources = [exactly(struct.unpack("<I", exactly(4))[0]) for _ in range(2)]
    rewrite = route = None
    try:
        known = {}
        if sys.argv[1]:
            rewrite = function(load(sys.argv[1], sources[0], known), "rewrite_query")
        if sys.argv[2]:
            route = function(load(sys.argv[2], sources[1], known), "routing_rules")
    except BaseException as error:
        send(describe(error))
        return
    send(b"")
    data = bytearray()
    while True:
        chunk = pipe.recv(1 << 18)
        if not chunk:
            return
        data += chunk
        out = bytearray()
        started = time.monotonic()
        at = 0
        while len(data) - at >= 4:
            size = struct.unpack_from("<I", data, at)[0]
            if len(data) - at - 4 < size:
                break
            frame = bytes(data[at + 4:at + 4 + size])
            at += 4 + size
            busy, users, encodings = struct.unpack_from("<BHB", frame)
            user = frame[4:4 + users]
            encoding = codec(frame[4 + users:4 + users + encodings])
            result = call(rewrite, route, bool(busy), user, encoding, frame[4 + users + encodings:])
            out += struct.pack("<I", len(result)) + result
            if time.monotonic() - started > 0.001:
                pipe.sendall(out)
                out = bytearray()
        del data[:at]
        if out:
            pipe.sendall(out)


main()
