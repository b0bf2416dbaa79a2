# One file for both images (README, "In a container"):
#   docker build .                                                                              NVIDIA GPU, Python 3.12
#   docker build --build-arg VARIANT=cpu --build-arg BASE_IMAGE=debian:bookworm-slim .          CPU, Python 3.11
# It is for BuildKit and for the classic builder, so it does without RUN --mount, COPY --link and heredocs.
ARG BASE_IMAGE=nvidia/cuda:12.5.1-base-ubuntu24.04

# What both the build and the image need from the distribution. Nothing in the image has a setuid or setgid bit.
FROM ${BASE_IMAGE} AS base
RUN if ! python3 -c '' 2>/dev/null || ! ldconfig -p | grep -q libgomp.so.1; then \
      apt-get update \
      && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 libgomp1 libstdc++6 \
      && rm -rf /var/lib/apt/lists/*; \
    fi \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin mlip-pace \
    && mkdir /data /config /out && chmod 1777 /out \
    && find / -xdev -type f -perm /6000 -exec chmod ug-s {} +

# The dependencies, exactly those of the hash lock, less what a batch job never opens: tests, headers, static libraries, libclang,
# TensorBoard's server, TensorFlow's symbol tables, pip. Compiled Python files stay, because without them each start compiles anew.
FROM base AS dependencies
ARG VARIANT=cuda
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends binutils ca-certificates python3-venv
COPY requirements/${VARIANT}-py*.txt requirements/sbom-py*.txt /build/requirements/
RUN python=py$(python3 -c 'import sys; print("%d%d" % sys.version_info[:2])') \
    && python3 -m venv /build/pip && (/build/pip/bin/pip uninstall --yes setuptools || true) \
    && for venv in /build/sbom /opt/venv; do python3 -m venv --without-pip $venv; done \
    && pip="/build/pip/bin/pip --no-cache-dir --python" \
    && lock="--no-deps --require-hashes --only-binary :all: --requirement /build/requirements" \
    && $pip /build/sbom/bin/python install $lock/sbom-$python.txt \
    && $pip /opt/venv/bin/python install $lock/${VARIANT}-$python.txt \
    && cd /opt/venv/lib/python3*/site-packages \
    && find . -type d \( -name tests -o -name include \) -prune -exec rm -rf {} + \
    && find . -type f \( -name '*.a' -o -name '*.pyi' -o -name '*.h' \) -delete \
    && rm -r clang/native tensorboard/webfiles.zip tensorboard_data_server/bin \
    && strip --strip-unneeded tensorflow/libtensorflow_*.so.2 \
    && echo /opt/mlip-pace >mlip-pace.pth

# Our own code, apart from them, so that a change of it rebuilds only this; its compiled kernels, for the kind of CPU that builds it
# (others compile them once a run, in 5 s); and the list of everything, as CycloneDX.
FROM dependencies AS code
COPY pyproject.toml README.md LICENSE entrypoint.py /build/source/
COPY mlip_pace /build/source/mlip_pace
COPY deploy/sbom.py /build/
COPY --from=base /var/lib/dpkg /build/dpkg
RUN /build/pip/bin/pip --no-cache-dir --python /opt/venv/bin/python install --no-deps --no-build-isolation \
      --target /opt/mlip-pace /build/source \
    && cp /build/source/entrypoint.py /build/source/LICENSE /opt/mlip-pace/ \
    && PYTHONPATH=/opt/mlip-pace /opt/venv/bin/python -c 'import mlip_pace.ace.kernels' \
    && /build/sbom/bin/cyclonedx-py environment --output-reproducible /opt/venv/bin/python \
      | python3 /build/sbom.py /build/dpkg >/opt/mlip-pace/sbom.cdx.json

FROM base
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=code /opt/mlip-pace /opt/mlip-pace
ENV PATH=/opt/mlip-pace/bin:/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    PYTHONNOUSERSITE=1
USER 10001:10001
ENTRYPOINT ["/opt/venv/bin/python", "-I", "/opt/mlip-pace/entrypoint.py"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mlip-pace" \
      org.opencontainers.image.description="From DFT results to an ACE interatomic potential, with pacemaker" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="MIT AND LicenseRef-Academic-Software-License" \
      mlip-pace.licenses.bundled="python-ace, tensorpotential: Academic Software License (non-commercial, reciprocal); \
NVIDIA libraries, where VARIANT=cuda: NVIDIA Software License Agreement; all others: /opt/mlip-pace/sbom.cdx.json"
