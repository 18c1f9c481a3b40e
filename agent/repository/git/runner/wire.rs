//! What the agent and a helper say to each other: one message a packet (`SOCK_SEQPACKET`, see unix(7)), its fields ended
//! by NUL, which no argument, variable or path can have. Descriptors come with the message that speaks of them.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Of one request: less than what a socket takes where nobody changed that (net.core.wmem_default, 208 KiB).
pub(super) const REQUEST_BYTES_MAX: usize = 192 << 10;
/// Of one answer.
pub(super) const ANSWER_BYTES_MAX: usize = 16 << 10;
/// A working directory and three streams.
const DESCRIPTORS_MAX: usize = 4;

/// What an agent asks; the first message on a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// An agent begins: what others began is ended first. It holds as long as the connection.
    Begin { session: String },
    /// Whether it lives.
    Ping,
    /// One git. The connection is its life: closed, its group is killed.
    Run(Run),
    /// Whether git's user gets to `path`.
    Look { session: String, path: PathBuf },
}

/// One git to start. With it come its working directory, its standard input where `input`, output and error.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) session: String,
    pub(super) memory_bytes: u64,
    pub(super) processes: Option<u64>,
    pub(super) network: bool,
    pub(super) secret: bool,
    pub(super) input: bool,
    pub(super) low_priority: bool,
    pub(super) work_dir: PathBuf,
    pub(super) writes: Vec<PathBuf>,
    pub(super) reads: Vec<PathBuf>,
    pub(super) arguments: Vec<OsString>,
    pub(super) environment: Vec<(OsString, OsString)>,
}

/// What a helper answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// To `Begin` and `Ping`: what `git version` prints there.
    Ready(String),
    /// Git runs, under this number in the helper's namespace.
    Started(u32),
    /// As wait(2) has it.
    Ended(i32),
    /// Why not.
    Refused(String),
    /// To `Look`: what was said of the kernel, or where the way ends.
    Looked(Result<String, String>),
}

/// What an agent says to a git that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Terminate,
    Kill,
}

impl Order {
    pub(super) const fn word(self) -> &'static [u8] {
        match self {
            Self::Terminate => b"terminate",
            Self::Kill => b"kill",
        }
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        [Self::Terminate, Self::Kill].into_iter().find(|order| order.word() == bytes)
    }
}

/// Writes fields.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn add(mut self, field: impl AsRef<OsStr>) -> Self {
        self.0.extend_from_slice(field.as_ref().as_bytes());
        self.0.push(0);
        self
    }

    fn number(self, number: impl ToString) -> Self {
        self.add(number.to_string())
    }

    fn list<T: AsRef<OsStr>>(self, list: &[T]) -> Self {
        list.iter().fold(self.number(list.len()), Self::add)
    }
}

/// Reads them.
struct Reader<'a>(std::slice::Split<'a, u8, fn(&u8) -> bool>);

impl<'a> Reader<'a> {
    /// Nothing where the last field has no end.
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let fields: fn(&u8) -> bool = |byte| *byte == 0;
        bytes.strip_suffix(&[0]).map(|bytes| Self(bytes.split(fields)))
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.0.next()?).ok()
    }

    fn number<T: std::str::FromStr>(&mut self) -> Option<T> {
        self.text()?.parse().ok()
    }

    fn os(&mut self) -> Option<OsString> {
        Some(OsString::from_vec(self.0.next()?.to_vec()))
    }

    fn list(&mut self) -> Option<Vec<OsString>> {
        let count: usize = self.number()?;
        (0..count).map(|_| self.os()).collect()
    }

    fn paths(&mut self) -> Option<Vec<PathBuf>> {
        Some(self.list()?.into_iter().map(PathBuf::from).collect())
    }

    /// Nothing where more is there.
    fn end<T>(mut self, read: T) -> Option<T> {
        self.0.next().is_none().then_some(read)
    }
}

impl Request {
    pub(super) fn encode(&self) -> Vec<u8> {
        let fields = Fields::default();
        let fields = match self {
            Self::Begin { session } => fields.add("begin").add(session),
            Self::Ping => fields.add("ping"),
            Self::Look { session, path } => fields.add("look").add(session).add(path),
            Self::Run(run) => run.encode(fields.add("run")),
        };
        fields.0
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Reader::new(bytes)?;
        let request = match fields.text()? {
            "begin" => Self::Begin { session: fields.text()?.to_owned() },
            "ping" => Self::Ping,
            "look" => Self::Look { session: fields.text()?.to_owned(), path: fields.os()?.into() },
            "run" => Self::Run(Run::decode(&mut fields)?),
            _ => return None,
        };
        fields.end(request)
    }
}

impl Run {
    fn encode(&self, fields: Fields) -> Fields {
        let flags: String = [(self.network, 'n'), (self.secret, 's'), (self.input, 'i'), (self.low_priority, 'l')]
            .into_iter()
            .filter_map(|(is_set, flag)| is_set.then_some(flag))
            .collect();
        let pair = |(key, value): &(OsString, OsString)| {
            let mut pair = key.clone();
            pair.push("=");
            pair.push(value);
            pair
        };
        let environment: Vec<OsString> = self.environment.iter().map(pair).collect();
        let processes = self.processes.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let fields = fields.add(&self.session).number(self.memory_bytes).add(processes).add(flags).add(&self.work_dir);
        fields.list(&self.writes).list(&self.reads).list(&self.arguments).list(&environment)
    }

    fn decode(fields: &mut Reader<'_>) -> Option<Self> {
        let (session, memory_bytes) = (fields.text()?.to_owned(), fields.number()?);
        let processes = match fields.text()? {
            "-" => None,
            count => Some(count.parse().ok()?),
        };
        let flags = fields.text()?;
        let work_dir = fields.os()?.into();
        let (writes, reads, arguments) = (fields.paths()?, fields.paths()?, fields.list()?);
        let pair = |pair: OsString| {
            let bytes = pair.as_bytes();
            let at = bytes.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (bytes.get(..at)?, bytes.get(at.checked_add(1)?..)?);
            Some((OsStr::from_bytes(key).to_owned(), OsStr::from_bytes(value).to_owned()))
        };
        Some(Self {
            session,
            memory_bytes,
            processes,
            network: flags.contains('n'),
            secret: flags.contains('s'),
            input: flags.contains('i'),
            low_priority: flags.contains('l'),
            work_dir,
            writes,
            reads,
            arguments,
            environment: fields.list()?.into_iter().map(pair).collect::<Option<_>>()?,
        })
    }
}

impl Answer {
    pub(super) fn encode(&self) -> Vec<u8> {
        let fields = Fields::default();
        let fields = match self {
            Self::Ready(version) => fields.add("ready").add(version),
            Self::Started(pid) => fields.add("started").number(pid),
            Self::Ended(status) => fields.add("ended").number(status),
            Self::Refused(why) => fields.add("refused").add(why),
            Self::Looked(Ok(said)) => fields.add("good").add(said),
            Self::Looked(Err(why)) => fields.add("bad").add(why),
        };
        fields.0
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Reader::new(bytes)?;
        let answer = match fields.text()? {
            "ready" => Self::Ready(fields.text()?.to_owned()),
            "started" => Self::Started(fields.number()?),
            "ended" => Self::Ended(fields.number()?),
            "refused" => Self::Refused(fields.text()?.to_owned()),
            "good" => Self::Looked(Ok(fields.text()?.to_owned())),
            "bad" => Self::Looked(Err(fields.text()?.to_owned())),
            _ => return None,
        };
        fields.end(answer)
    }
}

/// Sends one message, with descriptors. It is whole or not sent at all.
pub(super) fn send(socket: impl AsFd, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// A message, and what came with it.
pub(super) type Received = (Vec<u8>, Vec<OwnedFd>);

/// Takes one message of at most `max` bytes; nothing at the end.
pub(super) fn receive(socket: impl AsFd, max: usize) -> io::Result<Option<Received>> {
    let mut message = vec![0; max];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = match recvmsg(socket, &mut [IoSliceMut::new(&mut message)], &mut control, RecvFlags::CMSG_CLOEXEC) {
        // The other side closed before it read everything.
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        got => got?,
    };
    let mut descriptors = Vec::new();
    for came in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = came {
            descriptors.extend(came);
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    message.truncate(got.bytes);
    Ok(Some((message, descriptors)))
}

/// [`receive`] that waits.
pub(super) async fn next(socket: &UnixStream, max: usize) -> io::Result<Option<Received>> {
    socket.async_io(Interest::READABLE, || receive(socket, max)).await
}

/// The next answer; nothing at the end, or where it is none.
pub(super) async fn answer(socket: &UnixStream) -> Option<Answer> {
    let (message, _) = next(socket, ANSWER_BYTES_MAX).await.ok()??;
    Answer::decode(&message)
}

/// Whether two descriptors, or a path and one, are the same file.
pub(super) fn is_same(one: impl AsFd, other: impl AsFd) -> bool {
    let id = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)).ok();
    id(one.as_fd()).is_some_and(|one| id(other.as_fd()) == Some(one))
}

/// A directory, for those who go there.
pub(super) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn run() -> Run {
        Run {
            session: "one".into(),
            memory_bytes: 1 << 30,
            processes: Some(64),
            network: true,
            secret: false,
            input: true,
            low_priority: false,
            work_dir: "/a b".into(),
            writes: vec![".".into()],
            reads: Vec::new(),
            arguments: vec!["fetch".into(), "".into(), OsString::from_vec(vec![0xff, b'\n'])],
            environment: vec![("KEY".into(), "a=b".into()), ("EMPTY".into(), "".into())],
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for request in [
            Request::Begin { session: "one".into() },
            Request::Ping,
            Request::Look { session: "one".into(), path: "/x".into() },
            Request::Run(run()),
            Request::Run(Run { processes: None, ..run() }),
        ] {
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        for answer in [
            Answer::Ready("git version 2.47.3".into()),
            Answer::Started(7),
            Answer::Ended(-1),
            Answer::Refused("no".into()),
            Answer::Looked(Ok(String::new())),
            Answer::Looked(Err("closed".into())),
        ] {
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }
    }

    #[test]
    fn what_is_cut_or_has_more_is_no_message() {
        let whole = Request::Run(run()).encode();
        for length in 0..whole.len() {
            assert_eq!(Request::decode(&whole[..length]), None, "{length}");
        }
        assert_eq!(Request::decode(&[&whole[..], b"more\0"].concat()), None);
        // A count that nothing could hold.
        assert_eq!(Request::decode(b"run\0s\x001\0-\0\0/\x0099999999999\0"), None);
    }

    #[test]
    fn descriptors_come_with_their_message() {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let dir = open_dir(Path::new("/")).unwrap();
        send(&one, b"first", &[dir.as_fd(), one.as_fd()]).unwrap();
        send(&one, b"second", &[]).unwrap();
        let (message, descriptors) = receive(&other, 64).unwrap().unwrap();
        assert_eq!((message.as_slice(), descriptors.len()), (&b"first"[..], 2));
        assert!(is_same(&descriptors[0], &dir) && !is_same(&descriptors[1], &dir));
        assert!(receive(&other, 3).is_err(), "a message that is longer than it may be");
        drop((one, descriptors));
        assert!(receive(&other, 64).unwrap().is_none());
    }
}
