"""The text of the embedded parent: source files of the Python standard library, in two fixed lists.

The lists name modules that CPython 3.11 to 3.14 all have, Debian's split packages included. Nothing is downloaded: the
files are read from the interpreter that runs. Their text differs a little between Python versions.
"""

import sysconfig
from pathlib import Path
from typing import Final, Literal, TypeAlias

from inlay.nas.errors import UserError

Split: TypeAlias = Literal["train", "held_out"]

DOCUMENT_END: Final = "<|endoftext|>"


def documents(split: Split, folder: Path | None = None) -> list[str]:
    """The modules of one split, one document a module, in the fixed order of the list.

    `folder` is the standard library to read, by default that of the running interpreter. Line ends are `\\n`.
    Raises `UserError` naming the first module that is missing.
    """
    root = folder if folder is not None else Path(sysconfig.get_path("stdlib"))
    return [_read(root, module) for module in modules(split)]


def modules(split: Split) -> tuple[str, ...]:
    """The paths of one split, relative to the standard library. Raises `UserError` for another name of a split."""
    match split:
        case "train":
            return tuple(_TRAIN.split())
        case "held_out":
            return tuple(_HELD_OUT.split())
        case _:
            raise UserError(f"`split` must be `train` or `held_out`, not `{split}`.")


def text(split: Split, folder: Path | None = None) -> str:
    """One split as one text in the product's document format: a line that is only `<|endoftext|>` ends a document."""
    return "".join(f"{document.rstrip(chr(10))}\n{DOCUMENT_END}\n" for document in documents(split, folder))


def _read(root: Path, module: str) -> str:
    try:
        return (root / module).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"The module `{module}` is missing from the standard library at `{root}`: the embedded parent's text needs "
            "a complete CPython 3.11 to 3.14 (on Debian and Ubuntu, the package `libpython3-stdlib`)."
        ) from None


_TRAIN: Final = """
__future__.py _collections_abc.py _compat_pickle.py _markupbase.py _py_abc.py _pydecimal.py _pyio.py _strptime.py
_threading_local.py _weakrefset.py abc.py argparse.py ast.py asyncio/__init__.py asyncio/__main__.py
asyncio/base_events.py asyncio/base_futures.py asyncio/base_subprocess.py asyncio/base_tasks.py asyncio/constants.py
asyncio/coroutines.py asyncio/events.py asyncio/exceptions.py asyncio/format_helpers.py asyncio/futures.py
asyncio/mixins.py asyncio/proactor_events.py asyncio/protocols.py asyncio/queues.py asyncio/runners.py
asyncio/selector_events.py asyncio/sslproto.py asyncio/staggered.py asyncio/subprocess.py asyncio/taskgroups.py
asyncio/tasks.py asyncio/threads.py asyncio/timeouts.py asyncio/transports.py asyncio/trsock.py asyncio/unix_events.py
asyncio/windows_events.py asyncio/windows_utils.py base64.py bdb.py bisect.py bz2.py calendar.py code.py codecs.py
codeop.py collections/__init__.py colorsys.py compileall.py concurrent/futures/__init__.py concurrent/futures/_base.py
concurrent/futures/process.py contextlib.py copy.py copyreg.py ctypes/__init__.py ctypes/_aix.py ctypes/_endian.py
ctypes/util.py ctypes/wintypes.py curses/__init__.py curses/ascii.py curses/has_key.py curses/textpad.py
dataclasses.py difflib.py dis.py doctest.py email/__init__.py email/_encoded_words.py email/_header_value_parser.py
email/_parseaddr.py email/_policybase.py email/base64mime.py email/charset.py email/contentmanager.py
email/encoders.py email/errors.py email/feedparser.py email/header.py email/headerregistry.py email/iterators.py
email/message.py email/mime/application.py email/mime/audio.py email/mime/base.py email/mime/image.py
email/mime/message.py email/mime/multipart.py email/mime/nonmultipart.py email/mime/text.py email/policy.py
email/quoprimime.py email/utils.py enum.py filecmp.py fileinput.py fnmatch.py functools.py genericpath.py getopt.py
getpass.py gettext.py glob.py gzip.py hashlib.py heapq.py hmac.py html/__init__.py html/parser.py http/__init__.py
http/client.py http/cookiejar.py http/server.py imaplib.py importlib/__init__.py importlib/_abc.py
importlib/_bootstrap.py importlib/_bootstrap_external.py importlib/abc.py importlib/machinery.py
importlib/metadata/__init__.py importlib/metadata/_adapters.py importlib/metadata/_collections.py
importlib/metadata/_functools.py importlib/metadata/_itertools.py importlib/metadata/_meta.py
importlib/metadata/_text.py importlib/resources/__init__.py importlib/resources/_adapters.py
importlib/resources/_common.py importlib/resources/_itertools.py importlib/resources/abc.py
importlib/resources/readers.py importlib/resources/simple.py inspect.py io.py ipaddress.py json/__init__.py
json/encoder.py json/scanner.py json/tool.py keyword.py linecache.py locale.py logging/__init__.py logging/config.py
lzma.py mailbox.py mimetypes.py modulefinder.py multiprocessing/__init__.py multiprocessing/connection.py
multiprocessing/context.py multiprocessing/dummy/__init__.py multiprocessing/dummy/connection.py
multiprocessing/forkserver.py multiprocessing/heap.py multiprocessing/managers.py multiprocessing/popen_fork.py
multiprocessing/popen_forkserver.py multiprocessing/popen_spawn_posix.py multiprocessing/popen_spawn_win32.py
multiprocessing/process.py multiprocessing/queues.py multiprocessing/reduction.py multiprocessing/resource_sharer.py
multiprocessing/resource_tracker.py multiprocessing/shared_memory.py multiprocessing/sharedctypes.py
multiprocessing/spawn.py multiprocessing/synchronize.py multiprocessing/util.py netrc.py ntpath.py numbers.py
opcode.py operator.py optparse.py os.py pdb.py pickle.py pickletools.py pkgutil.py platform.py plistlib.py poplib.py
posixpath.py pprint.py pstats.py pty.py py_compile.py pyclbr.py pydoc.py quopri.py random.py re/__init__.py
re/_casefix.py re/_compiler.py re/_constants.py re/_parser.py reprlib.py rlcompleter.py runpy.py sched.py secrets.py
selectors.py shelve.py shlex.py signal.py smtplib.py socket.py sqlite3/__init__.py sqlite3/dbapi2.py sqlite3/dump.py
ssl.py stat.py statistics.py subprocess.py symtable.py tabnanny.py tarfile.py threading.py token.py tokenize.py
tomllib/_parser.py tomllib/_re.py trace.py traceback.py tracemalloc.py tty.py types.py typing.py unittest/__init__.py
unittest/__main__.py unittest/_log.py unittest/async_case.py unittest/case.py unittest/main.py unittest/mock.py
unittest/runner.py unittest/signals.py unittest/suite.py unittest/util.py urllib/error.py urllib/parse.py
urllib/request.py urllib/response.py uuid.py warnings.py wave.py weakref.py webbrowser.py wsgiref/__init__.py
wsgiref/headers.py wsgiref/simple_server.py wsgiref/types.py wsgiref/util.py wsgiref/validate.py xml/__init__.py
xml/dom/NodeFilter.py xml/dom/__init__.py xml/dom/domreg.py xml/dom/expatbuilder.py xml/dom/minicompat.py
xml/dom/minidom.py xml/dom/pulldom.py xml/dom/xmlbuilder.py xml/etree/ElementInclude.py xml/etree/ElementTree.py
xml/etree/__init__.py xml/sax/__init__.py xml/sax/_exceptions.py xml/sax/expatreader.py xml/sax/handler.py
xml/sax/xmlreader.py xmlrpc/client.py xmlrpc/server.py zipapp.py zipimport.py zoneinfo/__init__.py zoneinfo/_common.py
zoneinfo/_tzpath.py
"""

_HELD_OUT: Final = """
asyncio/locks.py asyncio/streams.py cmd.py concurrent/futures/thread.py configparser.py csv.py email/generator.py
email/parser.py fractions.py ftplib.py graphlib.py http/cookies.py importlib/util.py json/decoder.py
logging/handlers.py multiprocessing/pool.py queue.py shutil.py socketserver.py tempfile.py textwrap.py timeit.py
unittest/loader.py unittest/result.py urllib/robotparser.py wsgiref/handlers.py xml/etree/ElementPath.py
xml/sax/saxutils.py zoneinfo/_zoneinfo.py
"""
