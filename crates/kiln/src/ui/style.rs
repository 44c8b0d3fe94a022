//! Colour, where it is wanted. Every text reads the same without it.

use std::fmt;

/// What a piece of text is, not which colour it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Heading,
    Good,
    Bad,
    Attention,
    Faint,
}

impl Role {
    /// Select Graphic Rendition parameters (ECMA-48, section 8.3.117).
    fn parameters(self) -> &'static str {
        match self {
            Role::Heading => "1",
            Role::Good => "32",
            Role::Bad => "1;31",
            Role::Attention => "33",
            Role::Faint => "2",
        }
    }
}

/// Whether a stream gets colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint {
    pub on: bool,
}

impl Paint {
    pub fn role(self, role: Role, text: impl fmt::Display) -> String {
        if self.on { format!("\u{1b}[{}m{text}\u{1b}[0m", role.parameters()) } else { text.to_string() }
    }

    pub fn heading(self, text: impl fmt::Display) -> String {
        self.role(Role::Heading, text)
    }

    pub fn good(self, text: impl fmt::Display) -> String {
        self.role(Role::Good, text)
    }

    pub fn bad(self, text: impl fmt::Display) -> String {
        self.role(Role::Bad, text)
    }

    pub fn attention(self, text: impl fmt::Display) -> String {
        self.role(Role::Attention, text)
    }

    pub fn faint(self, text: impl fmt::Display) -> String {
        self.role(Role::Faint, text)
    }
}

/// What decides about colour, apart from the stream itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct ColorWishes {
    /// `NO_COLOR` is set and not empty (no-color.org).
    pub no_color: bool,
    /// `CLICOLOR=0` (bixense.com/clicolors).
    pub clicolor_off: bool,
    /// `CLICOLOR_FORCE` is set and not `0`.
    pub clicolor_force: bool,
    /// `TERM` is `dumb` or not set.
    pub dumb_terminal: bool,
}

impl ColorWishes {
    pub fn paint(self, is_terminal: bool) -> Paint {
        let on = !self.no_color
            && (self.clicolor_force || (is_terminal && !self.clicolor_off && !self.dumb_terminal));
        Paint { on }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_color_wins_over_everything() {
        let all = [false, true];
        for clicolor_off in all {
            for clicolor_force in all {
                for dumb_terminal in all {
                    for is_terminal in all {
                        let wishes =
                            ColorWishes { no_color: true, clicolor_off, clicolor_force, dumb_terminal };
                        assert!(!wishes.paint(is_terminal).on, "{wishes:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn only_a_terminal_is_painted_unless_forced() {
        let plain = ColorWishes::default();
        assert!(plain.paint(true).on);
        assert!(!plain.paint(false).on);
        assert!(ColorWishes { clicolor_force: true, ..plain }.paint(false).on);
        assert!(!ColorWishes { dumb_terminal: true, ..plain }.paint(true).on);
        assert!(!ColorWishes { clicolor_off: true, ..plain }.paint(true).on);
    }
}
