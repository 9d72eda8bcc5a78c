//! Takes typed values out of a TOML table; whatever has the wrong type or range goes to the report with what is expected.

use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Form, Table};
use super::report::{Report, did_you_mean};

/// A table of the file, or the absence of one.
pub(super) struct Section<'a> {
    /// What may stand in it.
    form: &'static Table,
    span: Range<usize>,
    table: Option<&'a DeTable<'a>>,
}

impl<'a> Section<'a> {
    /// The whole file. What is in it and is no key is reported.
    pub(super) fn top(
        form: &'static Table,
        document: &'a Spanned<DeTable<'a>>,
        report: &mut Report<'_>,
    ) -> Self {
        Self::new(form, document.span(), Some(document.get_ref()), report)
    }

    /// A table; every key of it that `form` does not know is reported.
    fn new(
        form: &'static Table,
        span: Range<usize>,
        table: Option<&'a DeTable<'a>>,
        report: &mut Report<'_>,
    ) -> Self {
        let section = Self { form, span, table };
        section.allow(report);
        section
    }

    fn get(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        debug_assert!(
            self.form.keys.iter().any(|known| known.name == key),
            "{key} is not among the keys of {}",
            self.form.head()
        );
        self.table?.get(key)
    }

    /// Where its head stands.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Where the value of `key` stands, or the head of the section if there is none.
    pub(super) fn span_of(&self, key: &str) -> Range<usize> {
        self.get(key).map_or(self.span.clone(), Spanned::span)
    }

    /// Where `key` stands in element `index` of the tables `[[list]]`, or that element's head.
    pub(super) fn span_in(&self, list: &str, index: usize, key: &str) -> Option<Range<usize>> {
        let element = self.get(list)?.get_ref().as_array()?.get(index)?;
        let value = element.get_ref().as_table()?.get(key);
        Some(value.map_or(element.span(), Spanned::span))
    }

    /// Reports every key that is not known.
    fn allow(&self, report: &mut Report<'_>) {
        let known: Vec<&str> = self.form.keys.iter().map(|key| key.name).collect();
        for key in self.table.into_iter().flat_map(DeTable::keys) {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let place = if self.form.path.is_empty() {
                "at the top".into()
            } else {
                format!("of {}", self.form.head())
            };
            // A key of one emulator, written where all are spoken to.
            let inner = self.form.keys.iter().find(|key| match key.form {
                Form::Table(table) => {
                    !table.repeated && table.keys.iter().any(|key| key.name == name)
                }
                _ => false,
            });
            let hint = match inner {
                Some(inner) => format!(" (did you mean \"{}.{name}\"?)", inner.name),
                None => did_you_mean(name, known.iter().copied()),
            };
            report.error(
                key.span(),
                &format!(
                    "{name:?} is no key{hint}; the keys {place} are: {}",
                    known.join(", ")
                ),
            );
        }
    }

    /// The table of that form; empty if there is none.
    pub(super) fn table(&self, form: &'static Table, report: &mut Report<'_>) -> Section<'a> {
        let Some(value) = self.get(form.key) else {
            return Section::new(form, 0..0, None, report);
        };
        let table = value.get_ref().as_table();
        if table.is_none() {
            let wanted = format!("a table: write {}", form.head());
            self.mistyped(form.key, value, &wanted, report);
        }
        Section::new(form, value.span(), table, report)
    }

    /// The tables of that form.
    pub(super) fn tables(&self, form: &'static Table, report: &mut Report<'_>) -> Vec<Section<'a>> {
        let Some(value) = self.get(form.key) else {
            return Vec::new();
        };
        let wanted = format!("a list of tables: write {}", form.head());
        let Some(array) = value.get_ref().as_array() else {
            self.mistyped(form.key, value, &wanted, report);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for element in array.iter() {
            match element.get_ref().as_table() {
                Some(table) => {
                    sections.push(Section::new(form, element.span(), Some(table), report));
                }
                None => self.mistyped(form.key, element, &wanted, report),
            }
        }
        sections
    }

    pub(super) fn boolean(&self, key: &str, report: &mut Report<'_>) -> Option<bool> {
        let value = self.get(key)?;
        let boolean = value.get_ref().as_bool();
        if boolean.is_none() {
            self.mistyped(key, value, "true or false", report);
        }
        boolean
    }

    pub(super) fn text(
        &self,
        key: &str,
        report: &mut Report<'_>,
    ) -> Option<(String, Range<usize>)> {
        let value = self.get(key)?;
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.mistyped(key, value, "a string in double quotes", report);
        }
        Some((text?.to_owned(), value.span()))
    }

    /// A string that must be there; empty if it is not.
    pub(super) fn required_text(&self, key: &str, report: &mut Report<'_>) -> String {
        if self.get(key).is_none() {
            report.error(
                self.span.clone(),
                &format!(
                    "this {} has no {key}; add {key} = \"...\"",
                    self.form.head()
                ),
            );
        }
        self.text(key, report)
            .map(|(text, _)| text)
            .unwrap_or_default()
    }

    pub(super) fn number(
        &self,
        key: &str,
        range: RangeInclusive<u64>,
        unit: &str,
        report: &mut Report<'_>,
    ) -> Option<u64> {
        let value = self.get(key)?;
        let number = self.integer(key, value, report)?;
        let inside = u64::try_from(number)
            .ok()
            .filter(|number| range.contains(number));
        if inside.is_none() {
            let most = match *range.end() {
                u64::MAX => "or more".into(),
                end => format!("to {end}"),
            };
            report.error(
                value.span(),
                &format!(
                    "{key} = {number} is out of range: {} {most} {unit}",
                    range.start()
                ),
            );
        }
        inside
    }

    /// One number, or a list of numbers.
    pub(super) fn numbers(&self, key: &str, report: &mut Report<'_>) -> Option<Vec<u32>> {
        let value = self.get(key)?;
        let single = std::slice::from_ref(value);
        let values = value
            .get_ref()
            .as_array()
            .map_or(single, |array| &array[..]);
        let mut numbers = Vec::new();
        for value in values {
            let number = self.integer(key, value, report)?;
            let Ok(number) = u32::try_from(number) else {
                report.error(
                    value.span(),
                    &format!("{key} = {number} is out of range: 0 to 7"),
                );
                return None;
            };
            numbers.push(number);
        }
        Some(numbers)
    }

    /// A list of strings.
    pub(super) fn texts(
        &self,
        key: &str,
        report: &mut Report<'_>,
    ) -> Option<Vec<(String, Range<usize>)>> {
        const WANTED: &str = "a list of strings in double quotes";
        let value = self.get(key)?;
        let Some(array) = value.get_ref().as_array() else {
            self.mistyped(key, value, WANTED, report);
            return None;
        };
        let mut texts = Vec::new();
        for value in array {
            let Some(text) = value.get_ref().as_str() else {
                self.mistyped(key, value, WANTED, report);
                return None;
            };
            texts.push((text.to_owned(), value.span()));
        }
        Some(texts)
    }

    fn integer(
        &self,
        key: &str,
        value: &Spanned<DeValue<'a>>,
        report: &mut Report<'_>,
    ) -> Option<i128> {
        let parsed = value
            .get_ref()
            .as_integer()
            .map(|integer| i128::from_str_radix(integer.as_str(), integer.radix()));
        match parsed {
            Some(Ok(number)) => Some(number),
            Some(Err(_)) => {
                report.error(value.span(), &format!("{key} is far too large a number"));
                None
            }
            None => {
                self.mistyped(key, value, "a whole number without quotes", report);
                None
            }
        }
    }

    fn mistyped(
        &self,
        key: &str,
        value: &Spanned<DeValue<'a>>,
        wanted: &str,
        report: &mut Report<'_>,
    ) {
        report.error(
            value.span(),
            &format!(
                "{key} is of type {}; it must be {wanted}",
                value.get_ref().type_str()
            ),
        );
    }
}
