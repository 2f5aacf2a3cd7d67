//! What a [`Cost`] was made of: plain values that a file can hold and from which the very same cost can be made again.

use alloc::boxed::Box;

use serde::{Deserialize, Serialize};

use super::hardware::Cpu;
use super::{Cost, CostError, Form, Hardware, Model, Polynomial};

/// The ingredients of a [`Cost`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The device.
    pub device: Device,
    /// The host; the hardware's own unless [`Cost::with_cpu`] replaced it.
    pub cpu: Cpu,
}

/// What the time on the device follows from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Device {
    /// A model on GPUs.
    Gpus(Box<Gpus>),
    /// A fit.
    Polynomial(Box<Polynomial>),
}

/// A model on `tp` GPUs of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpus {
    /// The GPU.
    pub hardware: Hardware,
    /// The model.
    pub model: Model,
    /// How many share it.
    pub tp: u32,
}

impl Recipe {
    /// The name of the model, where there is one.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        match &self.device {
            Device::Gpus(gpus) => Some(&gpus.model.name),
            Device::Polynomial(_) => None,
        }
    }

    /// Makes the cost.
    ///
    /// # Errors
    /// As [`Cost::new`].
    pub fn make(&self) -> Result<Cost, CostError> {
        let cost = match &self.device {
            Device::Gpus(gpus) => Cost::new(&gpus.hardware, &gpus.model, gpus.tp)?,
            Device::Polynomial(polynomial) => Cost::polynomial(**polynomial),
        };
        Ok(cost.with_cpu(self.cpu))
    }
}

impl Cost {
    /// What it was made of: [`Recipe::make`] gives an equal cost.
    #[must_use]
    pub fn recipe(&self) -> Recipe {
        let device = match &self.form {
            Form::Kernels(kernels) => Device::Gpus(kernels.made_of.clone()),
            Form::Polynomial(polynomial) => Device::Polynomial(polynomial.clone()),
        };
        Recipe { device, cpu: self.cpu }
    }
}
