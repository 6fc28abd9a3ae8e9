//! The ways in which requests for inference come.

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Open Inference Protocol over REST.
    Infer,
    /// TensorFlow Serving's, `:predict`.
    Predict,
    /// The same, `:classify`.
    Classify,
    /// The same, `:regress`.
    Regress,
    /// Open Inference Protocol over gRPC.
    GrpcInfer,
    /// The same, one message of a stream.
    GrpcStream,
}

impl Route {
    /// `rest` or `grpc`.
    pub fn protocol(self) -> &'static str {
        if self.grpc_method().is_some() { "grpc" } else { "rest" }
    }

    /// What is wanted.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Infer | Self::GrpcInfer => "infer",
            Self::Predict => "predict",
            Self::Classify => "classify",
            Self::Regress => "regress",
            Self::GrpcStream => "stream",
        }
    }

    /// The call, over gRPC.
    pub fn grpc_method(self) -> Option<&'static str> {
        match self {
            Self::GrpcInfer => Some("ModelInfer"),
            Self::GrpcStream => Some("ModelStreamInfer"),
            Self::Infer | Self::Predict | Self::Classify | Self::Regress => None,
        }
    }

    /// The path, without what differs from model to model.
    pub fn path(self) -> &'static str {
        match self {
            Self::Infer => "/v2/models/{model}/infer",
            Self::Predict => "/v1/models/{model}:predict",
            Self::Classify => "/v1/models/{model}:classify",
            Self::Regress => "/v1/models/{model}:regress",
            Self::GrpcInfer => "inference.GRPCInferenceService/ModelInfer",
            Self::GrpcStream => "inference.GRPCInferenceService/ModelStreamInfer",
        }
    }

    /// The name of its spans, by the conventions of OpenTelemetry.
    pub fn span_name(self) -> &'static str {
        match self {
            Self::Infer => "POST /v2/models/{model}/infer",
            Self::Predict => "POST /v1/models/{model}:predict",
            Self::Classify => "POST /v1/models/{model}:classify",
            Self::Regress => "POST /v1/models/{model}:regress",
            Self::GrpcInfer | Self::GrpcStream => self.path(),
        }
    }
}
