"""Arbitrary JSON values for property tests. Some have the form of values in responses of Headscale."""

from __future__ import annotations

from hypothesis import strategies as st

JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(
            ["", "0", "1", "svc", "tag:svc", "100.64.0.1", "2026-03-01T12:00:00Z", "0001-01-01T00:00:00Z", 0, 1, 2, 1.0]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(
                st.sampled_from(["id", "name", "user", "key", "seconds", "nanos", "tag:svc"]), st.text(max_size=3)
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)
