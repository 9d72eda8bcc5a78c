//! The functions that a VM's bus can have, as one type for [`crate::pci::PciBus`].

use serde::{Deserialize, Serialize};

use crate::blk::{Block, BlockState};
use crate::console::{Console, ConsoleState};
use crate::entropy::{Entropy, EntropyState};
use crate::net::{Net, NetState};
use crate::pci::{ConfigSpace, Effect, PciFunction, Width};
use crate::state::StateError;
use crate::virtio::VirtioFunction;
#[cfg(doc)]
use crate::virtio::VirtioPci;

/// A function of one of the kinds that there are.
#[derive(Debug)]
pub enum Function {
    /// A network card.
    Net(Net),
    /// A source of entropy.
    Entropy(Entropy),
    /// A console.
    Console(Console),
    /// A disk.
    Block(Block),
}

impl Function {
    /// See [`VirtioPci::prefer_ports`].
    pub fn prefer_ports(&mut self) {
        let transport = match self {
            Function::Net(net) => net.transport_mut(),
            Function::Entropy(entropy) => entropy.transport_mut(),
            Function::Console(console) => console.transport_mut(),
            Function::Block(block) => block.transport_mut(),
        };
        transport.prefer_ports();
    }

    fn inner(&self) -> &dyn PciFunction {
        match self {
            Function::Net(net) => net,
            Function::Entropy(entropy) => entropy,
            Function::Console(console) => console,
            Function::Block(block) => block,
        }
    }

    fn inner_mut(&mut self) -> &mut dyn PciFunction {
        match self {
            Function::Net(net) => net,
            Function::Entropy(entropy) => entropy,
            Function::Console(console) => console,
            Function::Block(block) => block,
        }
    }
}

impl PciFunction for Function {
    fn config(&self) -> &ConfigSpace {
        self.inner().config()
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        self.inner_mut().config_mut()
    }

    fn config_read(&mut self, offset: u8, width: Width) -> u32 {
        self.inner_mut().config_read(offset, width)
    }

    fn config_write(&mut self, offset: u8, width: Width, value: u32) -> Effect {
        self.inner_mut().config_write(offset, width, value)
    }

    fn bar_read(&mut self, bar: u8, offset: u32, width: Width) -> u64 {
        self.inner_mut().bar_read(bar, offset, width)
    }

    fn bar_write(&mut self, bar: u8, offset: u32, width: Width, value: u64) -> Effect {
        self.inner_mut().bar_write(bar, offset, width, value)
    }

    #[inline]
    fn notified(&mut self, bar: u8, offset: u32) -> Option<u16> {
        match self {
            Function::Net(net) => net.notified(bar, offset),
            other => other.inner_mut().notified(bar, offset),
        }
    }
}

/// A function as a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FunctionState {
    /// A network card.
    Net(NetState),
    /// A source of entropy.
    Entropy(EntropyState),
    /// A console.
    Console(ConsoleState),
    /// A disk.
    Block(BlockState),
}

impl Function {
    /// What it is.
    #[must_use]
    pub fn save(&self) -> FunctionState {
        match self {
            Function::Net(net) => FunctionState::Net(net.save()),
            Function::Entropy(entropy) => FunctionState::Entropy(entropy.save()),
            Function::Console(console) => FunctionState::Console(console.save()),
            Function::Block(block) => FunctionState::Block(block.save()),
        }
    }

    /// One that goes on from there.
    ///
    /// # Errors
    /// [`StateError`]: none of ours gets there.
    pub fn restore(state: &FunctionState) -> Result<Function, StateError> {
        let within = |name: &'static str| move |error: StateError| error.within(name);
        Ok(match state {
            FunctionState::Net(net) => Function::Net(Net::restore(net).map_err(within("net"))?),
            FunctionState::Entropy(entropy) => {
                Function::Entropy(Entropy::restore(entropy).map_err(within("entropy"))?)
            }
            FunctionState::Console(console) => {
                Function::Console(Console::restore(console).map_err(within("console"))?)
            }
            FunctionState::Block(block) => {
                Function::Block(Block::restore(block).map_err(within("block"))?)
            }
        })
    }
}
