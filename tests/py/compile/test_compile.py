"""Tests of compile and load: the results, the refused arguments, and the error messages."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import Dim

from tests.py.compile.modules import CASES, ConvNet, make_case
from torch_tensorrt import UnsupportedOperatorError, compile, load
from torch_tensorrt._plan_builder import parse_compute_capabilities
from torch_tensorrt.dynamo.runtime import (
    PythonTorchTensorRTModule,
    TorchTensorRTModule,
)
from torch_tensorrt.runtime._engine.engine_module import EngineModule
from torch_tensorrt.runtime._runtime_cache import RuntimeCache
from torch_tensorrt.runtime._runtime_settings import RuntimeSettings

ANY_GPU = ["8.6"]
X = torch.randn(2, 3)


@pytest.fixture(scope="module")
def engine() -> EngineModule:
    case = make_case("convolution")
    return compile(
        case.module,
        **case.compile_arguments(),
        compute_capabilities=["8.6", (12, 0)],
        runtime_settings=RuntimeSettings("eager", "whole_graph_capture"),
    )


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of default caches during a test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def plan_of(module: EngineModule) -> bytes:
    assert module.serialized_engine is not None
    return module.serialized_engine.numpy().tobytes()


def cache_path(module: EngineModule) -> Path:
    cache = module.runtime_settings.runtime_cache
    assert isinstance(cache, RuntimeCache)
    return Path(cache.path)


class Lambda(torch.nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def compile_function(function: Callable[..., Any], x: torch.Tensor = X) -> EngineModule:
    module = Lambda(function).eval()
    return compile(module, (x,), compute_capabilities=ANY_GPU)


class TestResult:
    def test_it_is_a_module_with_the_names_of_the_original(
        self, engine: EngineModule
    ) -> None:
        assert isinstance(engine, TorchTensorRTModule)
        assert engine.input_binding_names == ["image"]
        assert engine.output_binding_names == ["output0"]
        assert engine.name == "ConvNet"
        assert engine.runtime_settings == RuntimeSettings(
            "eager", "whole_graph_capture"
        )
        plan = plan_of(engine)
        assert b"image" in plan
        assert b"output0" in plan

    def test_the_python_runtime_and_the_default_cache(self, cache_home: Path) -> None:
        engine = compile(
            torch.nn.ReLU().eval(),
            (X,),
            compute_capabilities=ANY_GPU,
            use_python_runtime=True,
        )
        assert isinstance(engine, PythonTorchTensorRTModule)
        assert cache_home in cache_path(engine).parents

    def test_the_module_is_left_as_it_was(self) -> None:
        module = ConvNet().eval()
        state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        compile(
            module,
            (torch.randn(1, 3, 16, 16),),
            compute_capabilities=ANY_GPU,
            runtime_settings=RuntimeSettings(),
        )
        assert not module.training
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, state[name])

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
    @pytest.mark.parametrize("use_python_runtime", [False, True], ids=["cpp", "python"])
    def test_running_it_says_what_it_lacks(
        self, engine: EngineModule, tmp_path: Path, use_python_runtime: bool
    ) -> None:
        engine.save(tmp_path / "net.engine")
        loaded = load(
            tmp_path / "net.engine",
            runtime_settings=RuntimeSettings(),
            use_python_runtime=use_python_runtime,
        )
        with pytest.raises(RuntimeError, match="needs an NVIDIA GPU"):
            loaded(torch.randn(4, 3, 16, 16))

    def test_tensors_in_containers_are_inputs_of_their_own(self) -> None:
        class Nested(torch.nn.Module):
            def forward(self, xs: list[torch.Tensor], d: Any, /, output0: Any) -> Any:
                return {"a": xs[0] + xs[1], "b": (d["k"] * 2, output0)}

        engine = compile(
            Nested().eval(),
            ([X, X], {"k": X}),
            {"output0": X},
            compute_capabilities=ANY_GPU,
            runtime_settings=RuntimeSettings(),
        )
        assert engine.input_binding_names == ["xs_0", "xs_1", "d_k", "output0"]
        assert engine.output_binding_names == ["_output0", "_output1", "_output2"]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int32, torch.bool])
    def test_dtypes(self, dtype: torch.dtype, cache_home: Path) -> None:
        engine = compile_function(torch.logical_not, torch.ones(3, dtype=dtype))
        assert engine.output_binding_names == ["output0"]


class TestFile:
    @pytest.mark.parametrize("use_python_runtime", [False, True])
    def test_a_saved_module_comes_back(
        self,
        engine: EngineModule,
        tmp_path: Path,
        cache_home: Path,
        use_python_runtime: bool,
    ) -> None:
        path = tmp_path / "net.engine"
        engine.save(path)
        loaded = load(path, use_python_runtime=use_python_runtime)
        kind = PythonTorchTensorRTModule if use_python_runtime else TorchTensorRTModule
        assert type(loaded) is kind
        assert plan_of(loaded) == plan_of(engine)
        assert loaded.input_binding_names == engine.input_binding_names
        assert loaded.output_binding_names == engine.output_binding_names
        assert loaded.name == engine.name
        settings = loaded.runtime_settings
        assert settings.merge(runtime_cache=None) == engine.runtime_settings
        assert cache_home in cache_path(loaded).parents

    def test_given_settings_replace_the_saved_ones(
        self, engine: EngineModule, tmp_path: Path
    ) -> None:
        engine.save(tmp_path / "net.engine")
        settings = RuntimeSettings("none")
        loaded = load(tmp_path / "net.engine", runtime_settings=settings)
        assert loaded.runtime_settings == settings


class TestComputeCapabilities:
    def test_strings_and_tuples_are_the_same(self) -> None:
        parsed = parse_compute_capabilities(["12.0", (8, 6), "8.6", (12, 0)])
        assert parsed == [(12, 0), (8, 6)]

    @pytest.mark.parametrize("capability", ["9.0", (9, 0), "8", "sm_86", 8.6, [8, 6]])
    def test_an_unknown_one_is_named_with_those_there_are(
        self, capability: Any
    ) -> None:
        unknown = r"(9\.0|'8'|'sm_86'|8\.6|\[8, 6\])"
        with pytest.raises(
            ValueError, match=rf"capability {unknown} .* knows \d+\.\d, "
        ):
            parse_compute_capabilities([capability])

    @pytest.mark.parametrize("capabilities", ["8.6", 8.6, []])
    def test_it_is_a_list(self, capabilities: Any) -> None:
        with pytest.raises(
            ValueError, match=r"compute_capabilities (must be|is empty)"
        ):
            parse_compute_capabilities(capabilities)

    def test_without_a_gpu_they_must_be_named(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(RuntimeError, match=r"no GPU here.*compute_capabilities=\["):
            compile(torch.nn.ReLU().eval(), (X,))

    def test_the_gpu_of_the_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
        assert parse_compute_capabilities(None) == [(8, 9)]
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        with pytest.raises(ValueError, match=r"This GPU's compute capability 9\.0 is"):
            parse_compute_capabilities(None)


class TestUnsupported:
    def test_what_onnx_lacks_is_named_with_its_place(self) -> None:
        class Airy(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> Any:
                y = x.relu()
                y = torch.special.airy_ai(y)  # the line to be named
                return y

        with pytest.raises(UnsupportedOperatorError) as raised:
            compile(
                torch.nn.Sequential(torch.nn.ReLU(), Airy()).eval(),
                (X,),
                compute_capabilities=ANY_GPU,
            )
        assert raised.value.operators == ("aten.special_airy_ai.default",)
        message = str(raised.value)
        assert "the operator aten.special_airy_ai.default of Sequential" in message
        assert __file__ in message
        assert "the line to be named" in message

    def test_what_tensorrt_lacks_is_named_with_its_place(self) -> None:
        class DetAndFft(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> Any:
                y = torch.fft.fft(x).real  # one line to be named
                y = y + torch.linalg.det(x)  # another
                return y * torch.linalg.det(y)

        with pytest.raises(UnsupportedOperatorError) as raised:
            compile(
                DetAndFft().eval(),
                (torch.randn(3, 3),),
                compute_capabilities=ANY_GPU,
            )
        assert sorted(raised.value.operators) == ["DFT", "Det"]
        message = str(raised.value)
        assert "the operator Det (from aten.linalg_det.default) at" in message
        assert "# another" in message
        assert "the operator DFT (from aten._fft_r2c.default) at" in message
        assert "one line to be named: " in message  # TensorRT-RTX's reason follows

    def test_a_failed_build_gives_the_reason(self) -> None:
        with pytest.raises(RuntimeError, match=r"build the engine: .*FP8"):
            compile_function(lambda x: x.to(torch.float8_e4m3fn))

    def test_control_flow_that_depends_on_data_is_named_with_its_place(self) -> None:
        def branch(x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else x + 1  # the line to be named

        with pytest.raises(RuntimeError, match="export Lambda as one graph") as raised:
            compile_function(branch)
        assert "the line to be named" in str(raised.value)
        assert "draft_export" not in str(raised.value)


class TestWrongArguments:
    @pytest.mark.parametrize("module", [torch.relu, "net", ConvNet])
    def test_no_module(self, module: Any) -> None:
        with pytest.raises(TypeError, match=r"Only a torch\.nn\.Module"):
            compile(module, (X,), compute_capabilities=ANY_GPU)

    def test_training_mode(self) -> None:
        module = ConvNet()
        with pytest.raises(
            ValueError, match=r"ConvNet is in training mode, .*eval\(\)"
        ):
            compile(module, (X,), compute_capabilities=ANY_GPU)
        module.eval().dropout.train()
        with pytest.raises(ValueError, match="in training mode \\('dropout' is\\)"):
            compile(module, (X,), compute_capabilities=ANY_GPU)

    @pytest.mark.parametrize(
        ("arg_inputs", "kwarg_inputs", "error", "message"),
        [
            (X, None, TypeError, r"arg_inputs must be a tuple .* not a Tensor"),
            ((X,), [X], TypeError, "kwarg_inputs must be a mapping .* not a list"),
            ((X, 2), None, TypeError, r"arg_inputs\[1\] is 2, of type int; an engine"),
            (([X, None],), None, TypeError, r"arg_inputs\[0\]\[1\] is None, of type"),
            ((), {"x": 2.0}, TypeError, r"kwarg_inputs\['x'\] is 2.0, of type float"),
            ((), None, ValueError, "needs an input"),
            ((X,), {"y": X}, RuntimeError, "unexpected keyword argument 'y'"),
        ],
    )
    def test_inputs(
        self, arg_inputs: Any, kwarg_inputs: Any, error: type[Exception], message: str
    ) -> None:
        module = torch.nn.ReLU().eval()
        with pytest.raises(error, match=message):
            compile(module, arg_inputs, kwarg_inputs, compute_capabilities=ANY_GPU)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int16], ids=str)
    def test_dtypes(self, dtype: torch.dtype) -> None:
        match = f"input 'x' is of {dtype}, which TensorRT-RTX lacks"
        with pytest.raises(ValueError, match=match):
            compile_function(torch.square, torch.ones(3, dtype=dtype))

    @pytest.mark.parametrize("dynamic", [Dim("n"), Dim.AUTO, Dim.DYNAMIC], ids=str)
    def test_a_dynamic_dimension_without_a_maximum(self, dynamic: Any) -> None:
        with pytest.raises(
            ValueError, match=r"Dimension 1 of the input 'input' .*max="
        ):
            compile(
                torch.nn.ReLU().eval(),
                (X,),
                dynamic_shapes={"input": {1: dynamic}},
                compute_capabilities=ANY_GPU,
            )

    def test_an_example_out_of_the_range(self) -> None:
        with pytest.raises(RuntimeError, match=r"can't export ReLU .* 3 not in range"):
            compile(
                torch.nn.ReLU().eval(),
                (X,),
                dynamic_shapes={"input": {1: Dim("n", max=2)}},
                compute_capabilities=ANY_GPU,
            )

    def test_an_output_that_is_no_tensor(self) -> None:
        with pytest.raises(ValueError, match="Output 1 of the module is 3; an engine"):
            compile_function(lambda x: (x + 1, 3))

    def test_a_module_that_writes_to_its_input_or_state(self) -> None:
        class Counter(torch.nn.Module):
            count: torch.Tensor

            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("count", torch.zeros(()))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                self.count += 1
                return x.add_(self.count)

        with pytest.raises(
            ValueError, match="Counter writes to 'count', 'x' in forward"
        ):
            compile(Counter().eval(), (X,), compute_capabilities=ANY_GPU)


def test_nothing_is_told_but_by_exceptions(
    cache_home: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        # LSTM holds its parameters twice. torch.export warns of that, and here a warning would be
        # an error.
        compile(
            torch.nn.LSTM(4, 8).eval(),
            (torch.randn(5, 4),),
            compute_capabilities=ANY_GPU,
        )
        # The optimizer of ONNX models warns of outputs that are constants.
        compile_function(lambda x: (x, torch.ones(3)))
        for function in (
            lambda x: x if x.sum() > 0 else x + 1,  # torch.export prints the graph
            torch.special.airy_ai,
            torch.linalg.det,  # TensorRT-RTX logs errors
        ):
            with pytest.raises(RuntimeError):
                compile_function(function, torch.ones(3, 3))
    assert capfd.readouterr() == ("", "")
    assert [r for r in caplog.records if r.levelno >= logging.INFO] == []


MISSING = """
import sys
sys.modules.update(dict.fromkeys(["onnx", "onnxscript", "numpy"]))
import torch, torch_tensorrt
try:
    torch_tensorrt.compile(torch.nn.ReLU().eval(), (torch.ones(3),), compute_capabilities=["8.6"])
except ImportError as error:
    print(error)
"""


def test_without_the_extra_its_command_is_told() -> None:
    child = subprocess.run(
        [sys.executable, "-c", MISSING], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr
    assert 'pip install "torch-tensorrt-rtx-runtime[compile]"' in child.stdout
    assert "onnx" in child.stdout


def _gpu_is_supported() -> bool:
    if not torch.cuda.is_available():
        return False
    try:
        parse_compute_capabilities(None)
    except ValueError:
        return False
    return True


@pytest.mark.skipif(
    not _gpu_is_supported(), reason="needs a GPU that TensorRT-RTX supports"
)
@pytest.mark.parametrize("use_python_runtime", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_an_engine_computes_what_the_module_does(
    name: str, use_python_runtime: bool, tmp_path: Path
) -> None:
    case = make_case(name)
    engine = compile(
        case.module,
        **case.compile_arguments(),
        runtime_settings=RuntimeSettings(runtime_cache=tmp_path / "cache.bin"),
        use_python_runtime=use_python_runtime,
    )
    example = (*case.arg_inputs, *case.kwarg_inputs.values())
    for inputs in (example, case.other_inputs):
        outputs = engine(*(tensor.cuda() for tensor in inputs))
        if isinstance(outputs, torch.Tensor):
            outputs = (outputs,)
        case.check([output.cpu() for output in outputs], inputs)


FORK_DURING_A_BUILD = """
import os, signal, sys, threading
from types import SimpleNamespace
from torch_tensorrt import _plan_builder
parent = os.getpid()
is_saved, has_forked = threading.Event(), threading.Event()
def save(path, external_data):
    path.touch()
    is_saved.set()
    has_forked.wait()
model = SimpleNamespace(program=SimpleNamespace(save=save))
parser = SimpleNamespace(parse_from_file=os.path.exists, num_errors=0)
def define_network(*arguments):
    if os.getpid() != parent:
        raise RuntimeError("the child builds")
    _plan_builder._parse(parser, model)
    raise RuntimeError("the parent has its file")
_plan_builder.define_network = define_network
def build():
    try:
        _plan_builder.build_plan(model, [])
    except RuntimeError as error:
        print(error, flush=True)
builder = threading.Thread(target=build)
builder.start()
is_saved.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    build()
    sys.exit()
os.waitpid(pid, 0)
has_forked.set()
builder.join()
"""


def test_a_child_of_a_fork_during_a_build_builds_and_does_the_build_no_harm() -> None:
    program = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK_DURING_A_BUILD],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout == "the child builds\nthe parent has its file\n"
