//! Requests and their answers over a [`Link`].
//!
//! Nothing that comes back is trusted: what is no frame, no answer to what was asked, or out of range is passed over or
//! refused, and every wait has a limit. A line may lose bytes: a request without an answer is sent again, under the same
//! number, and the server carries it out once.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nagaya_vmm::control::{
    Answer, Decoder, GroupRow, Hello, ImageRow, Kind, Notice, Request, VERSION, VmRow, body_of,
    encode,
};

use super::link::Link;

/// Notices that are kept while an answer is waited for; older ones give way.
const MAX_NOTICES: usize = 1024;
/// Times that a request is sent before it is given up.
const ATTEMPTS: u32 = 3;
/// Most pages of one list: what goes on for longer is no list.
const MAX_PAGES: usize = 10_000;

/// A session with the hypervisor.
pub(super) struct Client {
    link: Link,
    decoder: Decoder,
    next_id: u32,
    notices: VecDeque<Notice>,
    /// The number of the next notice, if none gets lost.
    next_notice: u32,
    /// Notices that got lost.
    missed: u64,
    timeout: Duration,
    hello: Hello,
}

impl Client {
    /// Begins a session.
    pub(super) fn begin(link: Link, timeout: Duration) -> Result<Client> {
        let mut client = Client {
            link,
            decoder: Decoder::new(),
            // Answers to whoever was here before shall not be taken for ours.
            next_id: first_id(),
            notices: VecDeque::new(),
            next_notice: 0,
            missed: 0,
            timeout,
            hello: Hello {
                version: String::new(),
                cpus: 1,
                tsc_khz: 1,
                ticks: 0,
                frames: Default::default(),
                rejected: 0,
            },
        };
        match client.ask(&Request::Hello)? {
            Answer::Hello(hello) => client.hello = hello,
            other => return Err(unexpected(&other)),
        }
        // What came before the answer was meant for whoever was here before.
        client.notices.clear();
        client.next_notice = 0;
        client.missed = 0;
        Ok(client)
    }

    /// The machine, as it was when the session began.
    pub(super) fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Asks, and waits for the answer. A refusal is a [`nagaya_vmm::control::ControlError`].
    pub(super) fn ask(&mut self, request: &Request) -> Result<Answer> {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let mut bytes = Vec::new();
        encode(Kind::Request, id, request, &mut bytes)?;
        for _ in 0..ATTEMPTS {
            let deadline = Instant::now() + self.timeout / ATTEMPTS;
            self.link.write(&bytes, deadline)?;
            while Instant::now() < deadline {
                match self.receive(deadline, Some(id))? {
                    Some(Answer::Error(error)) => return Err(error.into()),
                    Some(answer) => return Ok(answer),
                    None => {}
                }
            }
        }
        bail!(
            "no answer on {} within {:?}: is another nagayactl connected, or the machine stopped? (Whether the request was \
             carried out is not known; --timeout waits longer)",
            self.link.name(),
            self.timeout
        )
    }

    /// Asks for something whose only good answer is `Ok`.
    pub(super) fn order(&mut self, request: &Request) -> Result<()> {
        match self.ask(request)? {
            Answer::Ok => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// All VMs.
    pub(super) fn vms(&mut self) -> Result<Vec<VmRow>> {
        self.list(
            |from| Request::ListVms { from },
            |answer| match answer {
                Answer::Vms { rows, next } => Ok((rows, next)),
                other => Err(other),
            },
        )
    }

    /// All groups.
    pub(super) fn groups(&mut self) -> Result<Vec<GroupRow>> {
        self.list(
            |from| Request::ListGroups { from },
            |answer| match answer {
                Answer::Groups { rows, next } => Ok((rows, next)),
                other => Err(other),
            },
        )
    }

    /// All images.
    pub(super) fn images(&mut self) -> Result<Vec<ImageRow>> {
        self.list(
            |from| Request::ListImages { from },
            |answer| match answer {
                Answer::Images { rows, next } => Ok((rows, next)),
                other => Err(other),
            },
        )
    }

    fn list<Row>(
        &mut self,
        request: impl Fn(u32) -> Request,
        page: impl Fn(Answer) -> Result<(Vec<Row>, Option<u32>), Answer>,
    ) -> Result<Vec<Row>> {
        let mut all = Vec::new();
        let mut from = 0;
        for _ in 0..MAX_PAGES {
            let (rows, next) =
                page(self.ask(&request(from))?).map_err(|other| unexpected(&other))?;
            all.extend(rows);
            match next {
                Some(next) if next > from => from = next,
                Some(_) => break,
                None => return Ok(all),
            }
        }
        bail!("{} gives a list without an end", self.link.name())
    }

    /// The oldest notice, waiting for one until `deadline`.
    pub(super) fn notice(&mut self, deadline: Instant) -> Result<Option<Notice>> {
        if self.notices.is_empty() {
            self.receive(deadline, None)?;
        }
        Ok(self.notices.pop_front())
    }

    /// Notices that were lost since the last call.
    pub(super) fn take_missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }

    /// Waits until the hypervisor has said something, or there is something on the other descriptor; says which.
    pub(super) fn wait_with(
        &self,
        other: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<(bool, bool)> {
        if !self.notices.is_empty() {
            return Ok((true, false));
        }
        self.link.wait_with(other, deadline)
    }

    /// Takes in what has come, once, waiting until `deadline`; gives the answer with that id if it was there.
    fn receive(&mut self, deadline: Instant, wanted: Option<u32>) -> Result<Option<Answer>> {
        let mut buffer = [0; 2048];
        let Some(length) = self.link.read(&mut buffer, deadline)? else {
            return Ok(None);
        };
        let mut answer = None;
        for &byte in buffer.get(..length).unwrap_or_default() {
            // What is no frame is noise of the line.
            let Some(Ok(frame)) = self.decoder.push(byte) else {
                continue;
            };
            match frame.kind {
                // Our own words, come back: somebody echoes.
                Kind::Request => {}
                Kind::Answer if Some(frame.id) == wanted => {
                    if frame.version != VERSION {
                        bail!(
                            "the hypervisor speaks version {} of the control protocol, this nagayactl version {VERSION}: \
                             use the one that belongs to it",
                            frame.version
                        );
                    }
                    let read: Answer = body_of(frame.body)
                        .filter(Answer::is_sane)
                        .context("the answer is malformed: is that a Nagaya at the other end?")?;
                    answer = Some(read);
                }
                Kind::Answer => {}
                Kind::Notice => {
                    let notice = body_of(frame.body).filter(Notice::is_sane);
                    if frame.version == VERSION
                        && let Some(notice) = notice
                    {
                        let gap = frame.id.wrapping_sub(self.next_notice);
                        self.next_notice = frame.id.wrapping_add(1);
                        self.missed += u64::from(gap);
                        if self.notices.len() == MAX_NOTICES {
                            self.notices.pop_front();
                            self.missed += 1;
                        }
                        self.notices.push_back(notice);
                    }
                }
            }
        }
        Ok(answer)
    }
}

/// An answer to another question.
pub(super) fn unexpected(answer: &Answer) -> anyhow::Error {
    let mut text = format!("{answer:?}");
    text.truncate(text.floor_char_boundary(80));
    anyhow::anyhow!("the hypervisor gave an answer to another question: {text}")
}

/// An id to begin with that another process hardly has.
fn first_id() -> u32 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos() as u32);
    now.rotate_left(16) ^ std::process::id()
}
