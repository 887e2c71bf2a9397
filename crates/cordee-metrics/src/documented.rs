//! Records whose doc comments are also data, so that the reference page cannot differ from the code.

/// A field of a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    /// Its key in JSON.
    pub(crate) name: &'static str,
    /// What it means.
    pub(crate) text: &'static str,
}

/// A kind of event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variant {
    /// Its value of `event` in JSON.
    pub(crate) name: &'static str,
    /// What it means.
    pub(crate) text: &'static str,
    /// What it says.
    pub(crate) fields: &'static [Field],
}

/// Defines a record with its doc comments kept: a struct gets `FIELDS`, an enum `VARIANTS`.
macro_rules! documented {
    (
        $(#[doc = $about:literal])+
        #[derive($($derive:tt)*)]
        pub struct $name:ident {
            $(
                $(#[doc = $text:literal])+
                $(#[serde($($serde:tt)*)])?
                pub $field:ident: $type:ty,
            )*
        }
    ) => {
        $(#[doc = $about])+
        #[derive($($derive)*)]
        pub struct $name {
            $(
                $(#[doc = $text])+
                $(#[serde($($serde)*)])?
                pub $field: $type,
            )*
        }

        impl $name {
            pub(crate) const FIELDS: &'static [$crate::documented::Field] = &[
                $($crate::documented::Field {
                    name: stringify!($field),
                    text: concat!($($text),+),
                },)*
            ];
        }
    };
    (
        $(#[doc = $about:literal])+
        #[derive($($derive:tt)*)]
        #[serde($($container:tt)*)]
        pub enum $name:ident {
            $(
                $(#[doc = $meaning:literal])+
                #[serde(rename = $wire:literal)]
                $variant:ident {
                    $(
                        $(#[doc = $text:literal])+
                        $(#[serde($($serde:tt)*)])?
                        $field:ident: $type:ty,
                    )*
                },
            )*
        }
    ) => {
        $(#[doc = $about])+
        #[derive($($derive)*)]
        #[serde($($container)*)]
        pub enum $name {
            $(
                $(#[doc = $meaning])+
                #[serde(rename = $wire)]
                $variant {
                    $(
                        $(#[doc = $text])+
                        $(#[serde($($serde)*)])?
                        $field: $type,
                    )*
                },
            )*
        }

        impl $name {
            pub(crate) const VARIANTS: &'static [$crate::documented::Variant] = &[
                $($crate::documented::Variant {
                    name: $wire,
                    text: concat!($($meaning),+),
                    fields: &[
                        $($crate::documented::Field {
                            name: stringify!($field),
                            text: concat!($($text),+),
                        },)*
                    ],
                },)*
            ];
        }
    };
}

pub(crate) use documented;
