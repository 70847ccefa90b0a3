//! Why a container gets nothing, in data first and then in words.
