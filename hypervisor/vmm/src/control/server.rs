//! The hypervisor's half of the protocol: bytes in, requests to the backend, bytes out.
//!
//! Whoever is at the other end cannot make it work without bound: one poll takes at most [`MAX_POLL_BYTES`], carries out at
//! most one request, and takes no input at all while the answers that are waiting to be sent leave no room for another.
//! What it keeps has a bound, too: the output, the requests under way, the consoles attached.
//!
//! A client that hears no answer may send the same frame again, since it cannot know which of the two was lost on the line: a
//! request is carried out once, and its answer is sent again.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use serde::Serialize;

use super::check::MAX_EXIT_REASONS;
use super::frame::{checksum, encoded_len};
use super::{
    Answer, Backend, Completion, ControlError, Decoder, ErrorCode, Kind, MAX_BODY_BYTES,
    MAX_CONSOLE_OUTPUT_BYTES, MAX_LAST_EXITS, MAX_WIRE_BYTES, Notice, Request, Selector, Step,
    Ticket, VERSION, VmAction, body_of, encode,
};

/// Most bytes of input that one poll takes.
pub const MAX_POLL_BYTES: usize = 512;
/// Most requests that are under way at one time.
pub const MAX_PENDING: usize = 8;
/// Most consoles that are attached at one time.
pub const MAX_ATTACHED: usize = 8;
/// Room for the answer that is being sent and the next one.
const OUTPUT_BYTES: usize = 2 * MAX_WIRE_BYTES;
/// While more than this waits to be sent, no notice is added: answers shall not wait long behind a talkative console.
const NOTICE_WATER_BYTES: usize = 512;
/// Rows of one page at most, so that a page costs bounded work.
const MAX_PAGE_ROWS: usize = 32;

/// What tells a request from another: its id and the checksum of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    id: u32,
    checksum: u32,
}

/// A request under way.
#[derive(Debug)]
struct Pending {
    ticket: Ticket,
    /// Which request; `None` if whoever asked has gone.
    asked_as: Option<Key>,
    /// The VM that will be gone when it is done.
    ends_vm: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shutdown {
    No,
    Wanted,
    Done,
}

/// The server's state. It owns no device: the caller moves bytes.
#[derive(Debug)]
pub struct Server {
    decoder: Decoder,
    output: Vec<u8>,
    /// Bytes at the front of `output` that have been sent.
    sent: usize,
    pending: Vec<Pending>,
    next_ticket: u64,
    /// The last request that was answered.
    answered: Option<Key>,
    /// Its answer, as a frame.
    last_answer: Vec<u8>,
    /// Notices of this session.
    notices: u32,
    /// VMs whose consoles the client follows.
    attached: Vec<u32>,
    /// VMs of these that are gone.
    closed: Vec<u32>,
    /// Whose console is looked at first, next time.
    turn: usize,
    events: bool,
    shutdown: Shutdown,
}

impl Default for Server {
    fn default() -> Server {
        Server::new()
    }
}

impl Server {
    /// A server that nobody has spoken to.
    #[must_use]
    pub fn new() -> Server {
        Server {
            decoder: Decoder::new(),
            output: Vec::with_capacity(OUTPUT_BYTES),
            sent: 0,
            pending: Vec::with_capacity(MAX_PENDING),
            next_ticket: 0,
            answered: None,
            last_answer: Vec::new(),
            notices: 0,
            attached: Vec::with_capacity(MAX_ATTACHED),
            closed: Vec::with_capacity(MAX_ATTACHED),
            turn: 0,
            events: false,
            shutdown: Shutdown::No,
        }
    }

    /// One step: looks after what is under way, takes input, says what is to be said. Gives how much of the input it took;
    /// the rest is to be given again. Without input it may be called at any time, and should be, some hundred times a second.
    pub fn poll(&mut self, backend: &mut impl Backend, input: &[u8]) -> usize {
        if self.shutdown == Shutdown::Done {
            return input.len();
        }
        self.look_after_pending(backend);
        let taken = self.take_input(backend, input);
        self.tell(backend);
        if self.shutdown == Shutdown::Wanted && self.output().is_empty() {
            self.shutdown = Shutdown::Done;
            backend.shutdown();
        }
        taken
    }

    /// What is to be sent.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        self.output.get(self.sent..).unwrap_or_default()
    }

    /// Takes note that so many bytes of [`Server::output`] have been sent.
    pub fn consume_output(&mut self, bytes: usize) {
        self.sent = self.sent.saturating_add(bytes).min(self.output.len());
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        }
    }

    /// Whether there is anything to do but to wait for input: something to send, or to look after.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.output().is_empty()
            || !self.pending.is_empty()
            || !self.attached.is_empty()
            || self.events
            || self.shutdown == Shutdown::Wanted
    }

    fn has_room(&self) -> bool {
        self.output().len() + MAX_WIRE_BYTES <= OUTPUT_BYTES
    }

    fn append(&mut self, bytes: &[u8]) {
        self.output.drain(..self.sent);
        self.sent = 0;
        self.output.extend_from_slice(bytes);
    }

    fn answer(&mut self, key: Key, answer: &Answer) {
        let mut frame = core::mem::take(&mut self.last_answer);
        frame.clear();
        if encode(Kind::Answer, key.id, answer, &mut frame).is_err() {
            let error = ControlError::new(
                ErrorCode::Internal,
                "the answer does not fit a frame: a bug of the hypervisor",
            );
            // An error's text has a bound far below a frame's.
            let _ = encode(Kind::Answer, key.id, &Answer::Error(error), &mut frame);
        }
        self.append(&frame);
        self.answered = Some(key);
        self.last_answer = frame;
    }

    /// Sends a notice. They are numbered, so that a client sees that one was lost.
    fn notify(&mut self, notice: &Notice) {
        let mut frame = Vec::new();
        // The bounds of what notices carry are far below a frame's.
        if encode(Kind::Notice, self.notices, notice, &mut frame).is_ok() {
            self.append(&frame);
        }
        self.notices = self.notices.wrapping_add(1);
    }

    fn take_input(&mut self, backend: &mut impl Backend, input: &[u8]) -> usize {
        let mut taken = 0;
        for &byte in input.iter().take(MAX_POLL_BYTES) {
            if !self.has_room() {
                break;
            }
            taken += 1;
            let Some(Ok(frame)) = self.decoder.push(byte) else {
                continue;
            };
            // An answer is what a server gets if a line is looped back.
            if frame.kind != Kind::Request {
                continue;
            }
            let key = Key {
                id: frame.id,
                checksum: checksum(frame.body),
            };
            if self.answered == Some(key) {
                let again = core::mem::take(&mut self.last_answer);
                self.append(&again);
                self.last_answer = again;
                break;
            }
            if self
                .pending
                .iter()
                .any(|pending| pending.asked_as == Some(key))
            {
                break;
            }
            let request = match frame.version {
                VERSION => body_of::<Request>(frame.body).ok_or_else(|| {
                    ControlError::new(ErrorCode::Malformed, "the body of this frame is no request")
                }),
                other => Err(ControlError::new(
                    ErrorCode::Version,
                    format!(
                        "the hypervisor speaks version {VERSION} of the control protocol, the client version {other}: \
                         use the nagayactl that belongs to it"
                    ),
                )),
            };
            match request.and_then(|request| self.serve(backend, key, request)) {
                Ok(Some(answer)) => self.answer(key, &answer),
                Ok(None) => {}
                Err(error) => self.answer(key, &Answer::Error(error)),
            }
            break;
        }
        taken
    }

    /// Carries a request out; `None` if it is under way.
    fn serve(
        &mut self,
        backend: &mut impl Backend,
        key: Key,
        request: Request,
    ) -> Result<Option<Answer>, ControlError> {
        if self.shutdown != Shutdown::No {
            return Err(ControlError::new(
                ErrorCode::State,
                "the machine is shutting down",
            ));
        }
        request.check(backend.cpus())?;
        match request {
            Request::Hello => {
                self.begin_session(backend);
                let mut hello = backend.hello();
                hello.rejected = self.decoder.rejected();
                Ok(Some(Answer::Hello(hello)))
            }
            Request::ListVms { from } => {
                let (rows, next) = page(from, |from| {
                    let mut row = backend.next_vm(from)?;
                    row.exits.truncate(MAX_EXIT_REASONS);
                    Some((row.id, row))
                });
                Ok(Some(Answer::Vms { rows, next }))
            }
            Request::ListGroups { from } => {
                let (rows, next) = page(from, |from| {
                    backend.next_group(from).map(|row| (row.id, row))
                });
                Ok(Some(Answer::Groups { rows, next }))
            }
            Request::ListImages { from } => {
                let (rows, next) = page(from, |from| backend.image(from).map(|row| (from, row)));
                Ok(Some(Answer::Images { rows, next }))
            }
            Request::Create(vm) => self.start(key, None, |ticket| backend.create(ticket, &vm)),
            Request::Destroy(vm) => self.act(backend, key, &vm, VmAction::Destroy),
            Request::Pause(vm) => self.act(backend, key, &vm, VmAction::Pause),
            Request::Resume(vm) => self.act(backend, key, &vm, VmAction::Resume),
            Request::Reset(vm) => self.act(backend, key, &vm, VmAction::Reset),
            Request::GroupSet { group, change } => {
                let group = backend.find_group(&group).ok_or_else(|| {
                    ControlError::new(
                        ErrorCode::NoSuchGroup,
                        format!("there is no group {group}: `nagayactl group ls` lists them"),
                    )
                })?;
                backend.set_group(group, &change)?;
                Ok(Some(Answer::Ok))
            }
            Request::VmSet { vm, change } => {
                let vm = find(backend, &vm)?;
                backend.set_vm(vm, &change)?;
                Ok(Some(Answer::Ok))
            }
            Request::Dump { vm, vcpu } => {
                let vm = find(backend, &vm)?;
                self.start(key, None, |ticket| backend.dump(ticket, vm, vcpu))
            }
            Request::ConsoleAttach(vm) => {
                let vm = find(backend, &vm)?;
                self.attach(backend, vm)?;
                Ok(Some(Answer::Attached { vm }))
            }
            Request::ConsoleDetach(vm) => {
                let vm = find(backend, &vm)?;
                if !self.attached.contains(&vm) {
                    return Err(ControlError::new(
                        ErrorCode::State,
                        format!("the console of VM {vm} is not attached"),
                    ));
                }
                self.attached.retain(|&other| other != vm);
                backend.console_attach(vm, false)?;
                Ok(Some(Answer::Ok))
            }
            Request::ConsoleInput { vm, bytes } => {
                let vm = find(backend, &vm)?;
                let taken = backend.console_input(vm, &bytes)?.min(bytes.len());
                Ok(Some(Answer::Accepted {
                    bytes: taken as u32,
                }))
            }
            Request::Frames => Ok(Some(Answer::Frames(backend.frames()))),
            Request::Events { wanted } => {
                self.events = wanted;
                backend.want_events(wanted);
                Ok(Some(Answer::Ok))
            }
            Request::Debug { vm, order } => {
                let vm = find(backend, &vm)?;
                Ok(Some(Answer::Debug(backend.debug(vm, &order)?)))
            }
            Request::Shutdown => {
                self.end_session(backend);
                self.shutdown = Shutdown::Wanted;
                Ok(Some(Answer::Ok))
            }
        }
    }

    fn begin_session(&mut self, backend: &mut impl Backend) {
        self.end_session(backend);
        for pending in &mut self.pending {
            pending.asked_as = None;
        }
        self.notices = 0;
    }

    fn end_session(&mut self, backend: &mut impl Backend) {
        for vm in self.attached.drain(..) {
            // The console is not followed any more, whatever the backend says to that.
            let _ = backend.console_attach(vm, false);
        }
        self.closed.clear();
        backend.debug_end();
        if core::mem::take(&mut self.events) {
            backend.want_events(false);
        }
    }

    fn attach(&mut self, backend: &mut impl Backend, vm: u32) -> Result<(), ControlError> {
        if self.attached.contains(&vm) {
            return Ok(());
        }
        if self.attached.len() + self.closed.len() >= MAX_ATTACHED {
            return Err(ControlError::new(
                ErrorCode::Exhausted,
                format!("{MAX_ATTACHED} consoles are attached: detach one first"),
            ));
        }
        backend.console_attach(vm, true)?;
        self.attached.push(vm);
        Ok(())
    }

    fn act(
        &mut self,
        backend: &mut impl Backend,
        key: Key,
        vm: &Selector,
        action: VmAction,
    ) -> Result<Option<Answer>, ControlError> {
        let vm = find(backend, vm)?;
        let ends = (action == VmAction::Destroy).then_some(vm);
        self.start(key, ends, |ticket| backend.act(ticket, vm, action))
    }

    /// Begins something that may take time.
    fn start(
        &mut self,
        key: Key,
        ends_vm: Option<u32>,
        begin: impl FnOnce(Ticket) -> Result<Step, ControlError>,
    ) -> Result<Option<Answer>, ControlError> {
        if self.pending.len() >= MAX_PENDING {
            return Err(ControlError::new(
                ErrorCode::Busy,
                format!("{MAX_PENDING} requests are still under way: try again"),
            ));
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        match begin(ticket)? {
            Step::Finished(completion) => {
                self.close(ends_vm);
                Ok(Some(answer_of(completion)))
            }
            Step::Pending => {
                self.pending.push(Pending {
                    ticket,
                    asked_as: Some(key),
                    ends_vm,
                });
                Ok(None)
            }
        }
    }

    fn look_after_pending(&mut self, backend: &mut impl Backend) {
        let mut index = 0;
        while let Some(pending) = self.pending.get(index) {
            if !self.has_room() {
                return;
            }
            let Some(result) = backend.finished(pending.ticket) else {
                index += 1;
                continue;
            };
            let pending = self.pending.swap_remove(index);
            if result.is_ok() {
                self.close(pending.ends_vm);
            }
            if let Some(key) = pending.asked_as {
                let answer = result.map_or_else(Answer::Error, answer_of);
                self.answer(key, &answer);
            }
        }
    }

    /// The VM is gone, and its console with it.
    fn close(&mut self, vm: Option<u32>) {
        let Some(vm) = vm else { return };
        if self.attached.contains(&vm) {
            self.attached.retain(|&other| other != vm);
            self.closed.push(vm);
        }
    }

    /// Adds notices, as long as little waits to be sent.
    fn tell(&mut self, backend: &mut impl Backend) {
        if self.shutdown != Shutdown::No || self.output().len() > NOTICE_WATER_BYTES {
            return;
        }
        if let Some(vm) = self.closed.pop() {
            self.notify(&Notice::ConsoleClosed { vm });
        }
        self.tell_console(backend);
        if self.events
            && let Some(event) = backend.next_event()
        {
            self.notify(&Notice::Event(event));
        }
    }

    /// The next console in turn that has something to say.
    fn tell_console(&mut self, backend: &mut impl Backend) {
        let mut buffer = [0; MAX_CONSOLE_OUTPUT_BYTES];
        for _ in 0..self.attached.len() {
            self.turn = (self.turn + 1) % self.attached.len();
            let Some(&vm) = self.attached.get(self.turn) else {
                return;
            };
            let chunk = backend.console_output(vm, &mut buffer);
            let bytes = buffer.get(..chunk.bytes).unwrap_or_default();
            let has_outstanding = !bytes.is_empty() || chunk.lost > 0;
            if has_outstanding {
                let notice = Notice::ConsoleOutput {
                    vm,
                    lost: chunk.lost,
                    bytes: bytes.to_vec(),
                };
                self.notify(&notice);
            }
            // It ended, or went without being destroyed from here.
            let is_gone = backend.find_vm(&Selector::Id(vm)).is_none();
            if chunk.is_over || (is_gone && !has_outstanding) {
                self.close(Some(vm));
                if !is_gone {
                    // It is not followed any more, whatever the backend says to that.
                    let _ = backend.console_attach(vm, false);
                }
                return;
            }
            if has_outstanding {
                return;
            }
        }
    }
}

fn answer_of(completion: Completion) -> Answer {
    match completion {
        Completion::Done => Answer::Ok,
        Completion::Created(vm) => Answer::Created { vm },
        Completion::Dump(mut dump) => {
            dump.last_exits.truncate(MAX_LAST_EXITS);
            Answer::Dump(dump)
        }
    }
}

fn find(backend: &mut impl Backend, vm: &Selector) -> Result<u32, ControlError> {
    backend.find_vm(vm).ok_or_else(|| {
        ControlError::new(
            ErrorCode::NoSuchVm,
            format!("there is no VM {vm}: `nagayactl ps` lists them"),
        )
    })
}

/// As many rows from `from` on as fit a frame, and where to go on. `next` gives the row with the least number from the one
/// given on, and that number.
fn page<Row: Serialize>(
    from: u32,
    mut next: impl FnMut(u32) -> Option<(u32, Row)>,
) -> (Vec<Row>, Option<u32>) {
    // What is around the rows: the answer's variant, their number, `next`.
    const AROUND_BYTES: usize = 16;
    let mut left = MAX_BODY_BYTES - AROUND_BYTES;
    let mut rows = vec![];
    let mut at = from;
    while let Some((id, row)) = next(at).filter(|(id, _)| *id >= at) {
        let bytes = encoded_len(&row);
        if bytes > left || rows.len() == MAX_PAGE_ROWS {
            if !rows.is_empty() {
                return (rows, Some(id));
            }
            // A row that fits no page is left out, or the list would never end.
        } else {
            left -= bytes;
            rows.push(row);
        }
        match id.checked_add(1) {
            Some(following) => at = following,
            None => break,
        }
    }
    (rows, None)
}
