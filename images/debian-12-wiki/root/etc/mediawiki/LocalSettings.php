<?php
// The settings that all wikis of this image share. What is one wiki's own, `kvmlab-wiki` has written down.
if ( !defined( 'MEDIAWIKI' ) ) {
	exit;
}

$wgSitename = 'Wiki';
$wgLanguageCode = 'en';
$wgLocaltimezone = 'UTC';
$wgEnableEmail = false;
$wgEnableUploads = false;

// Visitors come by many names and ports.
$wgServer = WebRequest::detectServer();
$wgScriptPath = '';

wfLoadSkin( 'Vector' );
$wgDefaultSkin = 'vector';

// A page is a page: nothing else is done while a visitor waits for it.
$wgMainCacheType = CACHE_ACCEL;
$wgResourceLoaderUseObjectCacheForDeps = true;
$wgJobRunRate = 0;
$wgCacheDirectory = '/var/cache/kvmlab-wiki';
$wgLocalisationCacheConf['store'] = 'array';
$wgLocalisationCacheConf['manualRecache'] = true;

// While the image is built there is no wiki yet.
$kvmlabOwn = '/var/lib/kvmlab-wiki/wiki.json';
if ( is_file( $kvmlabOwn ) ) {
	foreach ( json_decode( file_get_contents( $kvmlabOwn ), true, 4, JSON_THROW_ON_ERROR ) as $kvmlabName => $kvmlabValue ) {
		$GLOBALS[$kvmlabName] = $kvmlabValue;
	}
}
