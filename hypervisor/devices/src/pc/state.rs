//! The devices of a PC as a value.

use serde::{Deserialize, Serialize};

use super::clock::Clock;
use super::display::{self, Display, DisplayState};
use super::keyboard::{Keyboard, KeyboardState};
use super::pic::{Pic, PicState};
use super::pit::{self, Pit, PitState};
use super::power::{self, Power, PowerState};
use super::rtc::{self, Rtc, RtcState};
use super::{Pc, PcConfig};
use crate::ioapic::{IoApic, IoApicState};
use crate::state::{StateError, TscShift, check};
use crate::uart::{Uart, UartState};

/// All that the devices of a PC are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PcState {
    /// What it is like.
    pub config: PcConfig,
    pic: PicState,
    ioapic: IoApicState,
    pit: PitState,
    rtc: RtcState,
    power: PowerState,
    uart: UartState,
    keyboard: KeyboardState,
    display: DisplayState,
    post: u8,
}

impl PcState {
    /// Moves its times.
    pub fn shift(&mut self, by: TscShift) {
        self.config.start_tsc = by.moved_signed(self.config.start_tsc);
        self.pit.shift(by);
        self.rtc.shift(by);
    }
}

impl Pc {
    /// What they are.
    #[must_use]
    pub fn save(&self) -> PcState {
        let Pc {
            config,
            pic,
            ioapic,
            pit,
            rtc,
            power,
            uart,
            keyboard,
            display,
            post,
        } = self;
        PcState {
            config: *config,
            pic: pic.save(),
            ioapic: ioapic.save(),
            pit: pit.save(),
            rtc: rtc.save(),
            power: power.save(),
            uart: uart.save(),
            keyboard: keyboard.save(),
            display: display.save(),
            post: *post,
        }
    }

    /// A PC that goes on from there.
    ///
    /// # Errors
    /// [`StateError`]: no PC of ours gets there.
    pub fn restore(state: &PcState) -> Result<Pc, StateError> {
        let PcState {
            config,
            pic,
            ioapic,
            pit,
            rtc,
            power,
            uart,
            keyboard,
            display,
            post,
        } = state;
        check(
            config.tsc_khz > 0,
            "config.tsc_khz",
            config.tsc_khz,
            "more than 0",
        )?;
        let clock = |hz: u32| Clock::new(hz, config.tsc_khz, config.start_tsc);
        let least = config.least_period_ticks;
        let within = |name: &'static str| move |error: StateError| error.within(name);
        Ok(Pc {
            config: *config,
            pic: Pic::restore(pic).map_err(within("pic"))?,
            ioapic: IoApic::restore(ioapic).map_err(within("ioapic"))?,
            pit: Pit::restore(clock(pit::HZ), least, pit).map_err(within("pit"))?,
            rtc: Rtc::restore(clock(rtc::HZ), least, rtc).map_err(within("rtc"))?,
            power: Power::restore(clock(power::HZ), power).map_err(within("power"))?,
            uart: Uart::restore(uart).map_err(within("uart"))?,
            keyboard: Keyboard::restore(keyboard).map_err(within("keyboard"))?,
            display: Display::restore(clock(display::HZ), display).map_err(within("display"))?,
            post: *post,
        })
    }
}
